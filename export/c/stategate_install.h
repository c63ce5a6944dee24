/* Which of two models runs, on a robot that takes updates: the same decisions as `stategate install`.
 * A program links or loads two models, and keeps a record of 64 bytes in two places of its flash.
 *
 *     static stategate_install slots = {.read = my_read, .write = my_write};
 *     int model = stategate_install_boot(&slots);      once at each start; -1: nothing is installed
 *     ...
 *     stategate_install_event(&slots, STATEGATE_INSTALL_CONFIRMED, 0u, false);
 *
 * Nothing is allocated. A torn record leaves the one before it. */
#ifndef STATEGATE_INSTALL_H
#define STATEGATE_INSTALL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define STATEGATE_INSTALL_BYTES 64u
#define STATEGATE_INSTALL_STARTS 3u /* with an update that gets no further; the next refuses it */

typedef enum {
    STATEGATE_INSTALL_EMPTY = 0,
    STATEGATE_INSTALL_STEADY = 1,    /* the good model runs */
    STATEGATE_INSTALL_UNPACKING = 2, /* the other slot is being written */
    STATEGATE_INSTALL_STAGED = 3,    /* it is whole, and waits for its shadow run */
    STATEGATE_INSTALL_TRIAL = 4      /* it runs; the good one waits for the way back */
} stategate_install_phase;

typedef enum {
    STATEGATE_INSTALL_INSTALL = 0,   /* somebody wants to write a model of this release */
    STATEGATE_INSTALL_UNPACKED = 1,  /* it is whole, and gives its golden answers here */
    STATEGATE_INSTALL_REFUSED = 2,   /* the other slot is not to be used */
    STATEGATE_INSTALL_AGREED = 3,    /* the shadow run found nothing against it */
    STATEGATE_INSTALL_STARTED = 4,   /* the robot starts; stategate_install_boot says so */
    STATEGATE_INSTALL_CONFIRMED = 5, /* the trial is over, and it stays */
    STATEGATE_INSTALL_GO_BACK = 6,   /* somebody wants the model from before */
    STATEGATE_INSTALL_LOST_GOOD = 7  /* the good slot is damaged */
} stategate_install_event_kind;

typedef enum {
    STATEGATE_INSTALL_OK = 0,
    STATEGATE_INSTALL_NOT_PERMITTED = -1, /* nothing changed */
    STATEGATE_INSTALL_FAILED = -2         /* the record could not be written; nothing changed */
} stategate_install_result;

typedef struct {
    /* Read and write a whole record in place 0 or 1; false where that failed. Flash that must be
     * erased before it is written is erased here, so the two places lie in two sectors. */
    bool (*read)(void *user, int place, void *data, size_t bytes);
    bool (*write)(void *user, int place, const void *data, size_t bytes);
    void *user;

    /* What follows is the record. */
    uint32_t number;      /* grows by one with every change */
    uint32_t floor;       /* the highest release that was ever confirmed */
    uint32_t releases[2]; /* of the models in both slots */
    uint8_t phase, good, starts;
    bool has_back; /* whether the other slot has the model that was confirmed before */
} stategate_install;

/* The slot whose model runs: 0, 1, or -1 where nothing is installed. */
static inline int stategate_install_runs(const stategate_install *slots)
{
    if (slots->phase == STATEGATE_INSTALL_EMPTY) {
        return -1;
    }
    return slots->phase == STATEGATE_INSTALL_TRIAL ? 1 - (int)slots->good : (int)slots->good;
}

/* The slot that an update is written to: never the one that runs. */
static inline int stategate_install_target(const stategate_install *slots)
{
    return slots->phase == STATEGATE_INSTALL_EMPTY ? (int)slots->good : 1 - (int)slots->good;
}

/* The other slot is of no use. */
static inline void stategate_install_settle(stategate_install *slots)
{
    slots->phase = STATEGATE_INSTALL_STEADY;
    slots->has_back = false;
    slots->starts = 0u;
}

/* The model of the other slot becomes the good one. */
static inline void stategate_install_promote(stategate_install *slots)
{
    stategate_install_settle(slots);
    slots->good = (uint8_t)(1u - slots->good);
    if (slots->releases[slots->good] > slots->floor) {
        slots->floor = slots->releases[slots->good];
    }
}

/* What an event makes of the record, in memory alone; false where it is not permitted. */
static inline bool stategate_install_decide(
    stategate_install *slots, int event, uint32_t release, bool older_allowed)
{
    const int phase = slots->phase;
    const bool is_empty = phase == STATEGATE_INSTALL_EMPTY;
    const bool is_steady = phase == STATEGATE_INSTALL_STEADY;
    const bool is_on_trial = phase == STATEGATE_INSTALL_TRIAL;

    switch (event) {
    case STATEGATE_INSTALL_INSTALL:
        if (is_on_trial || (release < slots->floor && !older_allowed)) {
            return false;
        }
        if (!is_empty) {
            stategate_install_settle(slots);
            slots->phase = STATEGATE_INSTALL_UNPACKING;
        }
        return true;
    case STATEGATE_INSTALL_UNPACKED:
        if (!is_empty && phase != STATEGATE_INSTALL_UNPACKING) {
            return false;
        }
        slots->releases[stategate_install_target(slots)] = release;
        if (is_empty) {
            stategate_install_settle(slots);
            slots->floor = release;
        } else {
            slots->phase = STATEGATE_INSTALL_STAGED;
        }
        return true;
    case STATEGATE_INSTALL_AGREED:
        if (phase != STATEGATE_INSTALL_STAGED) {
            return false;
        }
        slots->phase = STATEGATE_INSTALL_TRIAL;
        slots->starts = 0u;
        return true;
    case STATEGATE_INSTALL_CONFIRMED:
        if (!is_on_trial) {
            return false;
        }
        stategate_install_promote(slots);
        slots->has_back = true;
        return true;
    case STATEGATE_INSTALL_REFUSED:
        if (!is_empty) {
            stategate_install_settle(slots);
        }
        return true;
    case STATEGATE_INSTALL_STARTED:
        if (is_on_trial || phase == STATEGATE_INSTALL_STAGED) { /* a shadow can crash too */
            if (slots->starts < STATEGATE_INSTALL_STARTS) {
                slots->starts = (uint8_t)(slots->starts + 1u);
            } else {
                stategate_install_settle(slots);
            }
        }
        return true;
    case STATEGATE_INSTALL_GO_BACK:
        if (is_empty || (is_steady && !slots->has_back)) {
            return false;
        }
        if (is_steady) {
            stategate_install_promote(slots);
        } else {
            stategate_install_settle(slots);
        }
        return true;
    case STATEGATE_INSTALL_LOST_GOOD:
        if (is_empty || phase == STATEGATE_INSTALL_UNPACKING || (is_steady && !slots->has_back)) {
            return false;
        }
        stategate_install_promote(slots);
        return true;
    default:
        return false;
    }
}

static inline void stategate_install_put(unsigned char *at, uint32_t value)
{
    for (unsigned i = 0u; i < 4u; ++i) {
        at[i] = (unsigned char)(value >> (8u * i));
    }
}

static inline uint32_t stategate_install_get(const unsigned char *at)
{
    uint32_t value = 0u;
    for (unsigned i = 0u; i < 4u; ++i) {
        value |= (uint32_t)at[i] << (8u * i);
    }
    return value;
}

/* CRC-32 of IEEE 802.3, without a table. */
static inline uint32_t stategate_install_crc(const unsigned char *data, size_t bytes)
{
    uint32_t crc = 0xffffffffu;
    for (size_t i = 0u; i < bytes; ++i) {
        crc ^= data[i];
        for (unsigned bit = 0u; bit < 8u; ++bit) {
            crc = (crc >> 1) ^ (0xedb88320u & (0u - (crc & 1u)));
        }
    }
    return ~crc;
}

static const unsigned char stategate_install_magic[8] = {'S', 'G', 'I', 'N', 'S', 'T', '\r', 1};

/* Take the newest good record of both places; without one the robot is empty. */
static inline void stategate_install_load(stategate_install *slots)
{
    slots->number = slots->floor = slots->releases[0] = slots->releases[1] = 0u;
    slots->phase = STATEGATE_INSTALL_EMPTY;
    slots->good = slots->starts = 0u;
    slots->has_back = false;
    for (int place = 0; place < 2; ++place) {
        unsigned char raw[STATEGATE_INSTALL_BYTES];
        bool is_good = slots->read(slots->user, place, raw, sizeof raw)
            && stategate_install_get(raw + 60) == stategate_install_crc(raw, 60u);
        for (unsigned i = 0u; is_good && i < sizeof stategate_install_magic; ++i) {
            is_good = raw[i] == stategate_install_magic[i];
        }
        if (is_good && raw[24] <= STATEGATE_INSTALL_TRIAL && raw[25] <= 1u && raw[27] <= 1u
            && stategate_install_get(raw + 8) > slots->number) {
            slots->number = stategate_install_get(raw + 8);
            slots->floor = stategate_install_get(raw + 12);
            slots->releases[0] = stategate_install_get(raw + 16);
            slots->releases[1] = stategate_install_get(raw + 20);
            slots->phase = raw[24];
            slots->good = raw[25];
            slots->starts = raw[26];
            slots->has_back = raw[27] != 0u;
        }
    }
}

/* Decide on an event, and write what follows to the place that does not hold the newest record. */
static inline stategate_install_result stategate_install_event(
    stategate_install *slots, int event, uint32_t release, bool older_allowed)
{
    stategate_install next = *slots;
    unsigned char raw[STATEGATE_INSTALL_BYTES] = {0};

    if (!stategate_install_decide(&next, event, release, older_allowed)) {
        return STATEGATE_INSTALL_NOT_PERMITTED;
    }
    if (next.phase == slots->phase && next.good == slots->good && next.starts == slots->starts
        && next.has_back == slots->has_back && next.floor == slots->floor
        && next.releases[0] == slots->releases[0] && next.releases[1] == slots->releases[1]) {
        return STATEGATE_INSTALL_OK; /* a start of what is confirmed costs no flash */
    }
    next.number = slots->number + 1u;
    for (unsigned i = 0u; i < sizeof stategate_install_magic; ++i) {
        raw[i] = stategate_install_magic[i];
    }
    stategate_install_put(raw + 8, next.number);
    stategate_install_put(raw + 12, next.floor);
    stategate_install_put(raw + 16, next.releases[0]);
    stategate_install_put(raw + 20, next.releases[1]);
    raw[24] = next.phase;
    raw[25] = next.good;
    raw[26] = next.starts;
    raw[27] = next.has_back ? 1u : 0u;
    stategate_install_put(raw + 60, stategate_install_crc(raw, 60u));
    if (!slots->write(slots->user, (int)(next.number & 1u), raw, sizeof raw)) {
        return STATEGATE_INSTALL_FAILED;
    }
    *slots = next;
    return STATEGATE_INSTALL_OK;
}

/* Load the record, count this start, and say which model runs: 0, 1, or -1 for none. Where a start
 * on trial cannot be counted, the good model runs. */
static inline int stategate_install_boot(stategate_install *slots)
{
    stategate_install_load(slots);
    if (stategate_install_event(slots, STATEGATE_INSTALL_STARTED, 0u, false)
        != STATEGATE_INSTALL_OK) {
        return (int)slots->good;
    }
    return stategate_install_runs(slots);
}

#endif
