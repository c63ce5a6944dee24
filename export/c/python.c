/* The step as functions that CPython calls without converting anything (METH_FASTCALL).
 *
 * No header of Python is needed and nothing of it is linked: what is called belongs to its stable
 * ABI, is looked for when the library is loaded, and missed by nobody who loads it without Python.
 * https://docs.python.org/3/c-api/stable.html; Py_buffer had this layout before it belonged there.
 */
#include "stategate.h"
#include "stategate_chain.h"
#include "stategate_model.h"

#if defined(__linux__) && !defined(STATEGATE_PORTABLE)

#include <string.h>

typedef void object;

typedef struct {
    void *data;
    object *owner;
    ptrdiff_t bytes, item_bytes;
    int read_only, rank;
    char *format;
    ptrdiff_t *shape, *strides, *suboffsets;
    void *internal;
} py_buffer;

#define CONTIGUOUS_WITH_FORMAT (0x0008 | 0x0004) /* PyBUF_ND | PyBUF_FORMAT */
#define PYTHON(result, name, ...) extern result name(__VA_ARGS__) __attribute__((weak))

PYTHON(void, Py_IncRef, object *);
PYTHON(void, Py_DecRef, object *);
PYTHON(object *, PyLong_FromLong, long);
PYTHON(object *, PyLong_FromUnsignedLongLong, unsigned long long);
PYTHON(unsigned long long, PyLong_AsUnsignedLongLong, object *);
PYTHON(void *, PyLong_AsVoidPtr, object *);
PYTHON(ptrdiff_t, PyDict_Size, object *);
PYTHON(object *, PyDict_GetItemWithError, object *, object *);
PYTHON(int, PyObject_IsInstance, object *, object *);
PYTHON(int, PyObject_GetBuffer, object *, py_buffer *, int);
PYTHON(void, PyBuffer_Release, py_buffer *);
PYTHON(void, PyErr_Clear, void);
PYTHON(void *, PyEval_SaveThread, void);
PYTHON(void, PyEval_RestoreThread, void *);

/* What the runtime lays down; runtime/engines/native_call.py has the same. */
typedef struct {
    object *name;
    void *buffer;
    const ptrdiff_t *shape;
    ptrdiff_t rank;
    char format; /* as in the struct module */
} input;

typedef struct {
    object *array_type;
    const input *inputs;
    ptrdiff_t count;
} filling;

typedef struct {
    const void *values;
    ptrdiff_t bytes;
    ptrdiff_t type; /* an enum stategate_type */
} result;

typedef struct {
    void *const *in;
    void *const *out;
    ptrdiff_t gives_lock_away;
} step;

typedef struct {
    step step;
    const result *results; /* outputs and gates */
    ptrdiff_t count;
} looking_step;

static bool fill_one(const input *wanted, object *array_type, object *value)
{
    py_buffer given;
    if (value == NULL || PyObject_IsInstance(value, array_type) != 1
        || PyObject_GetBuffer(value, &given, CONTIGUOUS_WITH_FORMAT) != 0) {
        return false;
    }
    const char *format = given.format;
    bool fits = given.rank == wanted->rank && format != NULL && format[0] == wanted->format
        && format[1] == '\0';
    for (ptrdiff_t i = 0; fits && i < wanted->rank; ++i) {
        fits = given.shape[i] == wanted->shape[i];
    }
    if (fits) {
        memcpy(wanted->buffer, given.data, (size_t)given.bytes);
    }
    PyBuffer_Release(&given);
    return fits;
}

/* fill(inputs: dict) -> 0, or 1 where the caller has to look at them itself */
STATEGATE_API object *stategate_python_fill(object *self, object *const *args, ptrdiff_t count)
{
    const filling *all = PyLong_AsVoidPtr(self);
    bool taken = count == 1 && PyDict_Size(args[0]) == all->count;
    for (ptrdiff_t i = 0; taken && i < all->count; ++i) {
        const input *wanted = &all->inputs[i];
        object *value = PyDict_GetItemWithError(args[0], wanted->name);
        Py_IncRef(value); /* what is no array may run code when asked, and leave the dict */
        taken = fill_one(wanted, all->array_type, value);
        Py_DecRef(value);
    }
    if (!taken) {
        PyErr_Clear();
    }
    return PyLong_FromLong(!taken);
}

static object *run(const step *bound, const result *results, ptrdiff_t count)
{
    void *thread = bound->gives_lock_away ? PyEval_SaveThread() : NULL;
    const int failed = stategate_compute(bound->in, bound->out);
    bool seen = failed == 0 && results != NULL;
    for (ptrdiff_t i = 0; seen && i < count; ++i) {
        const result *it = &results[i];
        seen = stategate_finite(it->values, (size_t)it->bytes, (enum stategate_type)it->type);
    }
    if (thread != NULL) {
        PyEval_RestoreThread(thread);
    }
    return PyLong_FromLong(seen ? -1 : failed);
}

/* run() -> what stategate_compute returns */
STATEGATE_API object *stategate_python_run(object *self, object *const *args, ptrdiff_t count)
{
    (void)args, (void)count;
    return run(PyLong_AsVoidPtr(self), NULL, 0);
}

/* run() -> the same, or -1 where it is 0 and every result finite */
STATEGATE_API object *stategate_python_look(object *self, object *const *args, ptrdiff_t count)
{
    const looking_step *bound = PyLong_AsVoidPtr(self);
    (void)args, (void)count;
    return run(&bound->step, bound->results, bound->count);
}

typedef struct {
    const void *bank[2];
    ptrdiff_t bytes;
    uint64_t bit; /* of the parity: set where the second bank is live */
} state;

typedef struct {
    const state *states;
    ptrdiff_t count;
} memory;

/* chain(before: int, parity: int) -> the chain of hashes with each live state */
STATEGATE_API object *stategate_python_chain(object *self, object *const *args, ptrdiff_t count)
{
    const memory *bound = PyLong_AsVoidPtr(self);
    uint64_t chain = PyLong_AsUnsignedLongLong(args[0]);
    const uint64_t parity = PyLong_AsUnsignedLongLong(args[1]);
    (void)count;
    for (ptrdiff_t i = 0; i < bound->count; ++i) {
        const state *it = &bound->states[i];
        chain = stategate_chained(chain, it->bank[(parity & it->bit) != 0], (size_t)it->bytes);
    }
    return PyLong_FromUnsignedLongLong(chain);
}

#endif
