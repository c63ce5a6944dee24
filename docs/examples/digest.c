/* The golden digest of a bundle's C on this machine: without Python, and without a file system.
 *
 *   cc -std=gnu11 -O3 -ffp-contract=off -fwrapv -fno-trapping-math -fno-math-errno \
 *      -I BUNDLE/native -Wa,-I,BUNDLE/native docs/examples/digest.c BUNDLE/native/[a-z]*.c -lm -o digest
 *   ./digest < inputs.bin
 *
 * Inputs are the golden episode's, as structs of stategate.h one after the other; bench/certify/builds.py
 * writes them so. The last word that it prints must be native.golden_digest of the manifest.
 *
 * With -DGIVEN_STATES the states that the episode starts from come first, each as it is in the
 * manifest. With -DEACH_STEP a line for each step has a hash of each output, gate and state.
 */
#include <stdio.h>
#include <string.h>

#include "stategate.h"
#include "stategate_chain.h"
#include "stategate_model.h"

static stategate_session session;
static stategate_inputs in;
static stategate_outputs out;

static void print(uint64_t value)
{
    printf("%08lx%08lx", (unsigned long)(value >> 32), (unsigned long)(value & 0xFFFFFFFFu));
}

static uint64_t chain_of(uint64_t chain, const void *data, size_t bytes)
{
#ifdef EACH_STEP
    print(stategate_chained(0, data, bytes));
    printf(" ");
#endif
    return stategate_chained(chain, data, bytes);
}

int main(void)
{
    const stategate_model *model = &stategate_this_model;
    uint64_t chain = 0;
    stategate_init(&session);
#ifdef GIVEN_STATES
    for (uint32_t i = 0; i < model->n_states; ++i) {
        const stategate_tensor *state = &model->states[i];
        if (fread((char *)&session.bank[0] + state->offset, state->bytes, 1, stdin) != 1) {
            printf("states are missing\n");
            return 1;
        }
    }
#endif
    for (long step = 0; fread(&in, sizeof in, 1, stdin) == 1; ++step) {
        const int result = stategate_step(&session, &in, &out);
        if (result < 0) {
            printf("step %ld was refused: %d\n", step, result);
            return 1;
        }
        for (uint32_t i = 0; i < model->n_outputs; ++i) { /* gates are among them */
            const stategate_tensor *output = &model->outputs[i];
            chain = chain_of(chain, (const char *)&out + output->offset, output->bytes);
        }
        (void)stategate_chain(&session, 0); /* zeros behind the rows that rings hold */
        for (uint32_t i = 0; i < model->n_states; ++i) {
            const stategate_tensor *state = &model->states[i];
            const void *bank = &session.bank[(session.parity >> state->group) & 1u];
            chain = chain_of(chain, (const char *)bank + state->offset, state->bytes);
        }
#ifdef EACH_STEP
        printf("\n");
#endif
    }
    print(chain);
    printf("\n");
    return 0;
}
