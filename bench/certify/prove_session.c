/* What Eva analyses: a session with any value in every input and state. */
#include <stdint.h>
#include "__fc_builtin.h"
#include "stategate.h"
#include "stategate_model.h"
static stategate_session session;
static stategate_inputs inputs;
static stategate_outputs outputs;
static unsigned char saved[STATEGATE_SAVED_BYTES];
float copysignf(float x, float y)
{
    (void)x, (void)y;
    return Frama_C_float_interval(-3.0e38f, 3.0e38f);
}
static bool may_write(void *user)
{
    (void)user;
    return Frama_C_interval(0, 1) != 0;
}
int main(void)
{
    (void)stategate_init(&session);
    session.may_write = may_write;
    FILL
    (void)stategate_step(&session, &inputs, &outputs);
    Frama_C_show_each_stepped();
    (void)stategate_save(&session, saved, sizeof saved);
    (void)stategate_load(&session, saved, sizeof saved);
    Frama_C_show_each_loaded();
    (void)stategate_chain(&session, 0u);
    (void)stategate_reset(&session);
    Frama_C_show_each_reset();
    return 0;
}
