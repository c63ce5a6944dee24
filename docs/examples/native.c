/* A robot's loop without Python: steps a bundle's native engine over recorded inputs.
 *
 *   cc -std=gnu11 -O3 -ffp-contract=off -fwrapv -fno-trapping-math -fno-math-errno \
 *      -I BUNDLE/native -Wa,-I,BUNDLE/native docs/examples/native.c BUNDLE/native/[a-z]*.c -lm -o robot
 *   ./robot < inputs.bin > outputs.bin
 *
 * Inputs and outputs are the structs of stategate.h, one after the other. In the middle of the
 * recording the session is saved, spoilt, and restored, as after a power cut.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "stategate.h"

static stategate_session session; /* static: nothing here needs a heap */
static unsigned char saved[STATEGATE_SAVED_BYTES];

/* A write budget: at most so many writes in all, for the example. */
static bool may_write(void *user)
{
    return session.counters.writes < *(const uint64_t *)user;
}

int main(int argc, char **argv)
{
    uint64_t most = argc > 1 ? strtoull(argv[1], NULL, 10) : UINT64_MAX;
    stategate_inputs in;
    static stategate_outputs out; /* zeros between its arrays too, as it is written as a whole */
    if (stategate_init(&session) < 0) {
        fprintf(stderr, "this library belongs to another header\n");
        return 1;
    }
    session.may_write = may_write;
    session.user = &most;
    for (int step = 0; fread(&in, sizeof in, 1, stdin) == 1; ++step) {
        if (stategate_step(&session, &in, &out) < 0) {
            fprintf(stderr, "step %d refused\n", step);
            return 1;
        }
        fwrite(&out, sizeof out, 1, stdout);
        if (step == 100) {
            stategate_save(&session, saved, sizeof saved);
            memset(session.bank, 0xFF, sizeof session.bank);
            if (stategate_load(&session, saved, sizeof saved) < 0) {
                return 1;
            }
        }
    }
    fwrite(&session.counters, sizeof session.counters, 1, stdout);
    fprintf(stderr, "%llu steps, %llu writes, %llu bytes of memory\n",
        (unsigned long long)session.counters.steps, (unsigned long long)session.counters.writes,
        (unsigned long long)stategate_state_bytes());
    return 0;
}
