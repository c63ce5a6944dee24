/* The black box in C; runtime/keep/records.py and black_box.py say what stands in its blocks. */
#include "stategate_black_box.h"

#include <string.h>

#include "stategate_chain.h"
#include "stategate_math.h"
#include "stategate_model.h"

#define MODEL stategate_this_model

#define HEAD 32u
#define ROOM (STATEGATE_BOX_BLOCK - HEAD)
#define RECORD 16u
#define VERSION 1u
#define PURPOSE 1u
/* Kinds of records, */
#define OPENED 1u
#define KEYFRAME 2u
#define STEP 3u
/* and their flags. */
#define REPLACED 1u
#define MISSED 2u
#define OVERDRAWN 1u
#define WROTE 2u
#define FAULT 4u
#define AGAIN 1u

static const unsigned char magic[8] = {0x53u, 0x47u, 0x52u, 0x45u, 0x43u, 0x0Du, 0x0Au, 0x1Au}; /* SGREC */
static const char opening[] = "{\"engine\":\"c\"}";

/* CRC-32 of ISO-HDLC, as in zlib, four bits at a time. */
static uint32_t crc_of(const unsigned char *data, size_t bytes)
{
    static const uint32_t table[16] = {
        0x00000000u, 0x1db71064u, 0x3b6e20c8u, 0x26d930acu, 0x76dc4190u, 0x6b6b51f4u, 0x4db26158u, 0x5005713cu,
        0xedb88320u, 0xf00f9344u, 0xd6d6a3e8u, 0xcb61b38cu, 0x9b64c2b0u, 0x86d3d2d4u, 0xa00ae278u, 0xbdbdf21cu,
    };
    uint32_t crc = 0xFFFFFFFFu;
    for (size_t i = 0; i < bytes; ++i) {
        crc = table[(crc ^ data[i]) & 15u] ^ (crc >> 4);
        crc = table[(crc ^ ((uint32_t)data[i] >> 4)) & 15u] ^ (crc >> 4);
    }
    return ~crc;
}

static void put32(unsigned char *at, uint32_t value) { (void)memcpy(at, &value, sizeof value); }

static void put64(unsigned char *at, uint64_t value) { (void)memcpy(at, &value, sizeof value); }

static uint32_t get32(const unsigned char *at)
{
    uint32_t value;
    (void)memcpy(&value, at, sizeof value);
    return value;
}

static uint64_t get64(const unsigned char *at)
{
    uint64_t value;
    (void)memcpy(&value, at, sizeof value);
    return value;
}

/* The digest of the graph, from the hex digits that end the tag. */
static void graph_digest(unsigned char digest[32])
{
    static const char tag[] = STATEGATE_TAG;
    const char *hex = &tag[sizeof tag - 65u];
    for (uint32_t i = 0; i < 64u; ++i) {
        const uint32_t code = (uint32_t)(unsigned char)hex[i]; /* of ASCII */
        const uint32_t digit = code <= 0x39u ? code - 0x30u : code - 0x57u;
        const uint32_t before = i % 2u == 0u ? 0u : (uint32_t)digest[i / 2u] << 4;
        digest[i / 2u] = (unsigned char)(before | digit);
    }
}

static uint64_t stored(uint64_t payload) { return (RECORD + payload + 15u) / 16u * 16u; }

static uint64_t bytes_of(const stategate_tensor *tensors, uint32_t count)
{
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < count; ++i) {
        bytes += tensors[i].bytes;
    }
    return bytes;
}

/* Whether a ring of this size can be stepped again; the same rule as in Python. */
static bool set_size(stategate_black_box *box, uint64_t bytes)
{
    const uint64_t step = stored(16u + bytes_of(MODEL.inputs, MODEL.n_inputs));
    const uint64_t keyframe = stored(16u + bytes_of(MODEL.states, MODEL.n_states)) + 64u;
    box->blocks = bytes / STATEGATE_BOX_BLOCK - (bytes >= STATEGATE_BOX_BLOCK ? 1u : 0u);
    box->interval = box->blocks * ROOM / 8u;
    if (box->interval < 4u * keyframe) {
        box->interval = 4u * keyframe;
    }
    return box->blocks <= UINT32_MAX && box->blocks >= (12u * (keyframe + step) + ROOM - 1u) / ROOM + 4u;
}

static void fill_header(const stategate_black_box *box, unsigned char *block, uint32_t life)
{
    (void)memset(block, 0, STATEGATE_BOX_BLOCK);
    (void)memcpy(block, magic, sizeof magic);
    put32(block + 8u, VERSION);
    put32(block + 12u, STATEGATE_BOX_BLOCK);
    put32(block + 16u, (uint32_t)box->blocks);
    put32(block + 20u, 1u); /* a ring */
    put32(block + 24u, life);
    put32(block + 28u, PURPOSE);
    graph_digest(block + 32u);
    put32(block + STATEGATE_BOX_BLOCK - 4u, crc_of(block, STATEGATE_BOX_BLOCK - 4u));
}

static void begin(stategate_black_box *box)
{
    box->at = HEAD;
    box->first = 0;
    box->since = 0;
    box->unsent = 0;
    box->chain = 0;
    box->mark = 0;
    box->flags = REPLACED;
    box->is_open = true;
    box->is_new = true;
}

stategate_box_result stategate_black_box_create(
    stategate_black_box *box, uint64_t bytes, uint32_t life)
{
    box->is_open = false;
    if (!set_size(box, bytes)) {
        return STATEGATE_BOX_TOO_SMALL;
    }
    /* The last block first, so that a file has its size and a copy that was cut off is noticed. */
    (void)memset(box->block, 0, STATEGATE_BOX_BLOCK);
    if (!box->write(box->user, box->blocks * STATEGATE_BOX_BLOCK, box->block, STATEGATE_BOX_BLOCK)) {
        return STATEGATE_BOX_FAILED;
    }
    fill_header(box, box->block, life);
    if (!box->write(box->user, 0, box->block, STATEGATE_BOX_BLOCK)) {
        return STATEGATE_BOX_FAILED;
    }
    box->life = life;
    box->sequence = 0;
    box->step = 0;
    box->before_crc = 0;
    begin(box);
    return STATEGATE_BOX_OK;
}

/* The number of the last step in a block of ours; 0 where no record begins in it. Nothing past the
 * block is read, whatever stands in it. */
static uint64_t last_step(const unsigned char *block)
{
    const uint32_t end = (uint32_t)block[20] | ((uint32_t)block[21] << 8);
    const uint32_t used = end < STATEGATE_BOX_BLOCK ? end : STATEGATE_BOX_BLOCK;
    uint32_t at = (uint32_t)block[22] | ((uint32_t)block[23] << 8);
    uint64_t step = 0;
    while (at != 0u && at + RECORD <= used) {
        const uint32_t bytes = get32(&block[at]);
        step = get64(&block[at + 8u]);
        at += (uint32_t)stored(bytes > ROOM ? ROOM : bytes);
    }
    return step;
}

stategate_box_result stategate_black_box_open(stategate_black_box *box, uint64_t bytes)
{
    unsigned char *block = box->block;
    uint64_t next = 0, step_before = 0;
    uint32_t crc = 0;
    box->is_open = false;
    if (!set_size(box, bytes)) {
        return STATEGATE_BOX_TOO_SMALL;
    }
    if (!box->read(box->user, 0, block, STATEGATE_BOX_BLOCK)) {
        return STATEGATE_BOX_FAILED;
    }
    if (memcmp(block, magic, sizeof magic) != 0
        || get32(block + STATEGATE_BOX_BLOCK - 4u) != crc_of(block, STATEGATE_BOX_BLOCK - 4u)) {
        return STATEGATE_BOX_NONE;
    }
    const uint32_t life = get32(block + 24u), header = get32(block + STATEGATE_BOX_BLOCK - 4u);
    fill_header(box, block, life);
    if (get32(block + STATEGATE_BOX_BLOCK - 4u) != header) {
        return STATEGATE_BOX_OTHER;
    }
    for (uint64_t place = 0; place < box->blocks; ++place) {
        if (!box->read(box->user, (1u + place) * STATEGATE_BOX_BLOCK, block, STATEGATE_BOX_BLOCK)) {
            return STATEGATE_BOX_FAILED;
        }
        const uint64_t sequence = get64(block + 8u);
        if (get32(block + 4u) == life && sequence % box->blocks == place && sequence >= next
            && get32(block) == crc_of(block + 4u, STATEGATE_BOX_BLOCK - 4u)) {
            const uint64_t step = last_step(block);
            next = sequence + 1u;
            crc = get32(block);
            step_before = step > step_before ? step : step_before;
        }
    }
    box->life = life;
    box->sequence = next;
    box->before_crc = crc;
    box->step = step_before;
    begin(box);
    return STATEGATE_BOX_OK;
}

static bool send(stategate_black_box *box)
{
    unsigned char *block = box->block;
    for (size_t i = box->at; i < STATEGATE_BOX_BLOCK; ++i) {
        block[i] = 0u;
    }
    (void)memset(block, 0, HEAD);
    put32(block + 4u, box->life);
    put64(block + 8u, box->sequence);
    put32(block + 16u, box->before_crc);
    put32(block + 20u, box->at | (box->first << 16));
    const uint32_t crc = crc_of(block + 4u, STATEGATE_BOX_BLOCK - 4u);
    put32(block, crc);
    const uint64_t place = 1u + box->sequence % box->blocks;
    const bool good = box->write(box->user, place * STATEGATE_BOX_BLOCK, block, STATEGATE_BOX_BLOCK);
    /* A number is used once, even where the write failed: readers see the gap. */
    box->sequence += 1u;
    box->before_crc = good ? crc : 0u;
    box->at = HEAD;
    box->first = 0;
    if (!good) {
        box->lost_steps += box->unsent;
        box->flags = MISSED;
    }
    box->unsent = 0;
    return good;
}

/* Byte by byte: that it stays within the block is to be seen at once. */
STATEGATE_ALONE void put(stategate_black_box *box, const void *data, size_t bytes)
{
    const unsigned char *from = data;
    uint32_t at = box->at;
    for (size_t i = 0; i < bytes; ++i) {
        if (at >= STATEGATE_BOX_BLOCK) {
            box->at = at;
            (void)send(box);
            at = box->at;
        }
        box->block[at] = from[i];
        at += 1u;
    }
    box->at = at;
}

static void begin_record(stategate_black_box *box, uint32_t kind, uint32_t flags, uint64_t bytes)
{
    unsigned char head[RECORD];
    if (box->at == STATEGATE_BOX_BLOCK) {
        (void)send(box);
    }
    box->first = box->first != 0u ? box->first : box->at;
    put32(head, (uint32_t)bytes);
    put32(&head[4], kind | (flags << 16));
    put64(&head[8], box->step);
    put(box, head, sizeof head);
}

/* The next record begins at a multiple of 16. */
static void end_record(stategate_black_box *box) { box->at = (box->at + 15u) / 16u * 16u; }

static void put_numbers(stategate_black_box *box, uint64_t first, uint64_t second)
{
    unsigned char head[16];
    put64(head, first);
    put64(&head[8], second);
    put(box, head, sizeof head);
}

static void keyframe(stategate_black_box *box, const stategate_session *s)
{
    const uint32_t flags = box->flags;
    box->flags = 0;
    begin_record(box, OPENED, box->is_new ? 0u : AGAIN, sizeof opening - 1u);
    box->is_new = false;
    put(box, opening, sizeof opening - 1u);
    end_record(box);
    begin_record(box, KEYFRAME, flags, 16u + bytes_of(MODEL.states, MODEL.n_states));
    put_numbers(box, box->chain, box->unix_ns);
    for (uint32_t i = 0; i < MODEL.n_states; ++i) {
        const stategate_tensor *state = &MODEL.states[i];
        const uint32_t bank = (uint32_t)((s->parity >> state->group) & 1u);
        put(box, (const char *)&s->bank[bank] + state->offset, state->bytes);
    }
    end_record(box);
    box->since = 0;
}

/* Asks the session's own hook, and keeps what it says. */
static bool ask(void *user)
{
    stategate_black_box *box = user;
    box->allowed = box->may_write == NULL || box->may_write(box->hook_user);
    return box->allowed;
}

stategate_result stategate_black_box_step(stategate_black_box *box, stategate_session *s,
    const stategate_inputs *in, stategate_outputs *out)
{
    if (!box->is_open || stategate_chain(s, 1u) == 1u) { /* nothing of it can be recorded */
        return stategate_step(s, in, out);
    }
    /* States that are not those after the last step: a reset, a load, or a step without the box. */
    if (stategate_chain(s, 0u) != box->mark) {
        box->flags |= REPLACED;
    }
    if (box->flags != 0u || box->since >= box->interval) {
        keyframe(box, s);
    }
    box->may_write = s->may_write;
    box->hook_user = s->user;
    s->may_write = ask;
    s->user = box;
    box->allowed = true;
    const stategate_result result = stategate_step(s, in, out);
    s->may_write = box->may_write;
    s->user = box->hook_user;
    box->mark = stategate_chain(s, 0u);
    const bool is_fault = result == STATEGATE_FAULT || result == STATEGATE_BAD_OUTPUT;
    if (!is_fault && result != STATEGATE_QUIET && result != STATEGATE_WROTE && result != STATEGATE_HELD) {
        return result; /* nothing was done */
    }
    box->chain = is_fault ? box->chain : stategate_chain(s, box->chain);
    box->step += 1u;
    box->unsent += 1u;
    const uint32_t flags = (box->allowed ? 0u : OVERDRAWN)
        | (result == STATEGATE_WROTE ? WROTE : 0u) | (is_fault ? FAULT : 0u);
    const uint64_t bytes = 16u + bytes_of(MODEL.inputs, MODEL.n_inputs);
    begin_record(box, STEP, flags, bytes);
    put_numbers(box, box->chain, 0);
    for (uint32_t i = 0; i < MODEL.n_inputs; ++i) {
        put(box, (const char *)in + MODEL.inputs[i].offset, MODEL.inputs[i].bytes);
    }
    end_record(box);
    box->since += stored(bytes);
    return result;
}

stategate_box_result stategate_black_box_flush(stategate_black_box *box)
{
    if (!box->is_open || box->at == HEAD) {
        return STATEGATE_BOX_OK;
    }
    return send(box) ? STATEGATE_BOX_OK : STATEGATE_BOX_FAILED;
}
