/* Rings of a session; a part of session.c.
 *
 * A row lies in the bank that is not read until it is appended, and a bank of rings is swapped
 * by a load alone. What is behind the rows that are held is no part of the memory. */

#if STATEGATE_ROWS > 0

static bool is_ring(const stategate_tensor *state)
{
    return state->group < MODEL.n_gates && MODEL.gates[state->group].appends;
}

static uint32_t held_rows(const stategate_session *s)
{
    int32_t held;
    (void)memcpy(&held, live_bank(s, MODEL.cursor), sizeof held);
    return (uint32_t)held; /* below zero: more than any ring holds */
}

/* Put the new row of each ring behind those that are held; false where the rings are full. */
static bool append_rows(stategate_session *s)
{
    const uint32_t held = held_rows(s);
    if (held >= STATEGATE_ROWS) {
        return false;
    }
    for (uint32_t i = 0; i < MODEL.n_states; ++i) {
        const stategate_tensor *ring = &MODEL.states[i];
        if (is_ring(ring)) {
            char *row = bank(s, ring, false) + held * ring->next_bytes;
            (void)memcpy(row, bank(s, ring, true), ring->next_bytes);
        }
    }
    return true;
}

/* Zeros behind the rows that are held, where others are to see the rings: what no longer counts would
 * tell of steps that were folded or taken back. */
static void clear_rest(const stategate_session *s)
{
    for (uint32_t i = 0; i < MODEL.n_states; ++i) {
        const stategate_tensor *ring = &MODEL.states[i];
        if (is_ring(ring)) {
            const size_t held = held_rows(s) * ring->next_bytes;
            (void)memset((char *)(uintptr_t)live_bank(s, ring) + held, 0, ring->bytes - held);
        }
    }
}

/* Whether the rings have the rows that their cursor counts. */
static bool rows_fit(const stategate_session *s) { return held_rows(s) <= STATEGATE_ROWS; }

/* States that every step replaces, into the place of one step or back into the bank that is not
 * read. */
static void copy_ungated(stategate_session *s, uint32_t place, bool back)
{
    char *at = s->kept + place * (STATEGATE_KEPT_BYTES / STATEGATE_ROWS);
    for (uint32_t i = 0; i < MODEL.n_states; ++i) {
        const stategate_tensor *state = &MODEL.states[i];
        if (state->group == MODEL.n_gates) {
            char *own = bank(s, state, back);
            (void)memcpy(back ? own : at, back ? at : own, state->bytes);
            at += state->bytes;
        }
    }
}

/* Keep what this step is about to replace, and append its rows. */
static void lay_rows(stategate_session *s, bool appends)
{
    if (s->kept != NULL) {
        copy_ungated(s, s->kept_next, false);
        s->kept_next = (s->kept_next + 1u) % STATEGATE_ROWS;
        s->kept_steps += s->kept_steps < STATEGATE_ROWS ? 1u : 0u;
    }
    if (appends) {
        const bool put = append_rows(s);
        s->counters.appends += put ? 1u : 0u;
        s->kept_steps = put ? s->kept_steps : 0u; /* full rings are folded */
    }
}

uint32_t stategate_rows_held(const stategate_session *s)
{
    return ready(s) == STATEGATE_OK ? held_rows(s) : 0u;
}

stategate_result stategate_keep_steps(stategate_session *s, void *buffer, size_t bytes)
{
    const stategate_result found = ready(s);
    if (found != STATEGATE_OK) {
        return found;
    }
    if (buffer != NULL && bytes < STATEGATE_KEPT_BYTES) {
        return STATEGATE_NOT_KEPT;
    }
    s->kept = buffer;
    s->kept_steps = 0u;
    return STATEGATE_OK;
}

stategate_result stategate_rewind(stategate_session *s, uint32_t steps)
{
    const stategate_result found = ready(s);
    if (found != STATEGATE_OK) {
        return found;
    }
    if (s->kept == NULL || steps == 0u || steps > s->kept_steps) {
        return STATEGATE_NOT_KEPT;
    }
    s->kept_next = (s->kept_next + STATEGATE_ROWS - steps) % STATEGATE_ROWS;
    s->kept_steps -= steps;
    copy_ungated(s, s->kept_next, true);
    s->parity ^= UINT64_C(1) << MODEL.n_gates;
    s->counters.rewound_steps += steps;
    return STATEGATE_OK;
}

#else /* no rings */

static void clear_rest(const stategate_session *s) { (void)s; }

#endif
