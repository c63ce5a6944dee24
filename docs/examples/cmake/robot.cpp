/* A robot's loop in C++17 over recorded inputs: structs of stategate.h from stdin, outputs to stdout.
 *
 * docs/guides/c-api.md has the commands that compile it. In the middle of the recording the memory goes
 * through a save, as over a restart.
 */
#include <cstdio>

#include "stategate.hpp"

static stategate::Session session; /* nothing here needs a heap */
static stategate::Saved saved;

int main()
{
    if (!session.initialised()) {
        std::fprintf(stderr, "%s\n", session.initialised().name());
        return 1;
    }
    static stategate_inputs in;
    for (int step = 0; std::fread(&in, sizeof in, 1, stdin) == 1; ++step) {
        const auto answer = session.step(in);
        if (!answer) { /* there are no outputs to act on */
            std::fprintf(stderr, "step %d: %s\n", step, answer.result().name());
            return 1;
        }
        std::fwrite(&*answer, sizeof *answer, 1, stdout);
        if (step == 100 && !(session.save(saved) && session.reset() && session.load(saved))) {
            return 1;
        }
    }
    const stategate_counters &counters = session.counters();
    std::fwrite(&counters, sizeof counters, 1, stdout);
    return 0;
}
