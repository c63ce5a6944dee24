/* A black box in C: the last steps of a session in a file, partition or chip of fixed size, for
 * `stategate replay`. Nothing is allocated; between two blocks of 4 KiB nothing is written. What
 * lies in a block that is not full is lost where power goes; stategate_black_box_flush ends it.
 *
 *     static stategate_black_box box = {.write = my_write, .read = my_read};
 *     if (stategate_black_box_open(&box, 1 << 20) != STATEGATE_BOX_OK) {
 *         (void)stategate_black_box_create(&box, 1 << 20, boot_counter);
 *     }
 *     result = stategate_black_box_step(&box, &session, &inputs, &outputs);
 */
#ifndef STATEGATE_BLACK_BOX_H
#define STATEGATE_BLACK_BOX_H

#include "stategate.h"

#define STATEGATE_BOX_BLOCK 4096u

#ifdef __cplusplus
extern "C" {
#endif

typedef enum {
    STATEGATE_BOX_OK = 0,
    STATEGATE_BOX_TOO_SMALL = -1, /* a ring of this size could not be stepped again */
    STATEGATE_BOX_NONE = -2,      /* nothing there to go on with: no header, or a damaged one */
    STATEGATE_BOX_OTHER = -3,     /* a black box of another model or size, left as it is */
    STATEGATE_BOX_FAILED = -4     /* a callback failed */
} stategate_box_result;

typedef struct {
    /* Put bytes at an offset, a multiple of 4096: one block each time; false where that failed.
     * Flash that must be erased before it is written is erased here. */
    bool (*write)(void *user, uint64_t at, const void *data, size_t bytes);
    /* The same the other way round; only open calls it. */
    bool (*read)(void *user, uint64_t at, void *data, size_t bytes);
    void *user;
    uint64_t unix_ns; /* wall time, where the program knows it: it stands in keyframes */

    /* What follows is the box's own. */
    uint64_t step;       /* number of the last step that was recorded */
    uint64_t lost_steps; /* that could not be, because a write failed */
    uint64_t blocks, sequence, interval, since, chain, mark, unsent;
    uint32_t life, before_crc, at, first, flags;
    bool is_open, is_new, allowed;
    bool (*may_write)(void *user); /* the session's own hook, while it steps */
    void *hook_user;
    STATEGATE_ALIGNED unsigned char block[STATEGATE_BOX_BLOCK];
} stategate_black_box;

/* Begin an empty box of so many bytes; what was there is forgotten. `life` is a number that no
 * earlier box in this place had, such as a counter of starts: blocks of an earlier one are told
 * apart by it. */
STATEGATE_API stategate_box_result stategate_black_box_create(
    stategate_black_box *box, uint64_t bytes, uint32_t life);

/* Go on with the box that is there, after what can be read of it. */
STATEGATE_API stategate_box_result stategate_black_box_open(
    stategate_black_box *box, uint64_t bytes);

/* stategate_step, and record it; what it answers is that of the step. Resets, loads and steps that
 * were taken without the box are noticed. A box that is not open records nothing. */
STATEGATE_API stategate_result stategate_black_box_step(stategate_black_box *box,
    stategate_session *session, const stategate_inputs *inputs, stategate_outputs *outputs);

/* Write the block that is being filled; the next step begins another one. */
STATEGATE_API stategate_box_result stategate_black_box_flush(stategate_black_box *box);

#ifdef __cplusplus
}
#endif

#endif
