/* Calls of the kernels that recording.py wrote, done again on this processor with each of its instruction sets: `replay RECORDING`.
 *
 * Prints a line for each instruction set, and one for each call that gives other bytes, another result or another error than it did where it was
 * recorded. Exit code 0 if none does, 1 if one does, 2 if the recording cannot be read.
 */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "Python.h"

PyModuleDef *PyInit__int16(void);
PyModuleDef *PyInit__rans(void);

#define MAX_ARGS 32
#define MAX_SHOWN 5

/* What the kernels ask of Python. ------------------------------------------------------------------------------------------------------------- */

static PyObject none = {.kind = NOTHING}, answer;
PyObject *const Py_None = &none;
const char *const PyExc_ValueError = "ValueError", *const PyExc_MemoryError = "MemoryError";
static char raised[256];

static void stop(const char *why) { fprintf(stderr, "replay: %s\n", why); exit(2); }

void PyErr_SetString(const char *kind, const char *message) { snprintf(raised, sizeof raised, "%s: %s", kind, message); }
PyObject *PyErr_NoMemory(void) { PyErr_SetString(PyExc_MemoryError, ""); return NULL; }
void *PyMem_Malloc(size_t size) { return malloc(size ? size : 1); }
void PyMem_Free(void *p) { free(p); }
void PyBuffer_Release(Py_buffer *view) { view->buf = NULL; }

int PyObject_GetBuffer(PyObject *object, Py_buffer *view, int flags) {
    (void)flags;
    if (object->kind != BUFFER) { PyErr_SetString("TypeError", "no buffer"); return -1; }
    view->buf = object->data;
    view->len = object->len;
    return 0;
}

int PyArg_ParseTuple(PyObject *args, const char *format, ...) {
    va_list to;
    va_start(to, format);
    Py_ssize_t i = 0;
    int good = 1;
    for (const char *f = format; *f && good; f++) {
        if (*f == '*') continue;
        if (*f == '|') {
            if (i == args->len) break;
            continue;
        }
        if (i == args->len) { good = 0; break; }
        PyObject *item = &args->items[i++];
        if (*f == 'y' || *f == 'w') good = PyObject_GetBuffer(item, va_arg(to, Py_buffer *), 0) == 0;
        else if (*f == 'O') *va_arg(to, PyObject **) = item->kind == NOTHING ? Py_None : item;
        else if (*f == 'i' && item->kind == INTEGER) *va_arg(to, int *) = (int)item->integer;
        else if (*f == 'n' && item->kind == INTEGER) *va_arg(to, Py_ssize_t *) = (Py_ssize_t)item->integer;
        else if (*f == 'd' && (item->kind == REAL || item->kind == INTEGER)) *va_arg(to, double *) = item->kind == REAL ? item->real : (double)item->integer;
        else good = 0;
    }
    va_end(to);
    if (i != args->len) good = 0;
    if (!good) PyErr_SetString("TypeError", "arguments of another form");
    return good;
}

static PyObject *answered(enum Kind kind, const void *data, Py_ssize_t len, long value) {
    free(answer.data);
    answer = (PyObject){.kind = kind, .len = len, .integer = value, .data = malloc((size_t)len + 1)};
    if (len) memcpy(answer.data, data, (size_t)len);
    answer.data[len] = 0;
    return &answer;
}

PyObject *PyLong_FromLong(long value) { return answered(INTEGER, NULL, 0, value); }
PyObject *PyUnicode_FromString(const char *text) { return answered(BYTES, text, (Py_ssize_t)strlen(text), 0); }
PyObject *PyBytes_FromStringAndSize(const char *data, Py_ssize_t len) { return answered(BYTES, data, len, 0); }

/* The recording: all numbers little-endian. ----------------------------------------------------------------------------------------------------- */

static FILE *file;

static void bytes(void *to, size_t n) {
    if (fread(to, 1, n, file) != n) stop("the recording ends too early");
}

static uint64_t number(int n) {
    uint8_t b[8];
    uint64_t v = 0;
    bytes(b, (size_t)n);
    while (n--) v = v << 8 | b[n];
    return v;
}

static int big_endian(void) { uint16_t one = 1; return !*(uint8_t *)&one; }

/* An array of numbers of `size` bytes, as this processor has them. */
static uint8_t *array(uint64_t len, int size) {
    uint8_t *a = malloc(len + 1);
    if (!a) stop("no memory");
    bytes(a, len);
    if (big_endian())
        for (uint64_t i = 0; i + (uint64_t)size <= len; i += (uint64_t)size)
            for (int k = 0; k < size / 2; k++) { uint8_t t = a[i + k]; a[i + k] = a[i + size - 1 - k]; a[i + size - 1 - k] = t; }
    return a;
}

typedef struct {
    char name[32];
    PyObject args[MAX_ARGS];
    uint8_t *before[MAX_ARGS], *after[MAX_ARGS]; /* of buffers; the same where nothing is written */
    int num_args, chooses_isa; /* which argument is an instruction set, or 0 */
    char error[256];
    uint8_t *result;
    uint64_t result_len;
} Call;

/* The next call; 0 at the end. */
static int next(Call *call) {
    int c = fgetc(file);
    if (c == EOF) return 0;
    memset(call, 0, sizeof *call);
    if (c >= (int)sizeof call->name) stop("a name is too long");
    bytes(call->name, (size_t)c);
    call->chooses_isa = (int)number(1);
    call->num_args = (int)number(1);
    if (call->num_args > MAX_ARGS) stop("a call has too many arguments");
    for (int i = 0; i < call->num_args; i++) {
        PyObject *arg = &call->args[i];
        int kind = (int)number(1);
        if (kind == 'n') arg->kind = NOTHING;
        else if (kind == 'i') { arg->kind = INTEGER; arg->integer = (int64_t)number(8); }
        else if (kind == 'd') { uint64_t v = number(8); arg->kind = REAL; memcpy(&arg->real, &v, 8); }
        else if (kind == 'b') {
            int size = (int)number(1), written = (int)number(1);
            arg->kind = BUFFER;
            arg->len = (Py_ssize_t)number(8);
            call->before[i] = array((uint64_t)arg->len, size);
            call->after[i] = written ? array((uint64_t)arg->len, size) : call->before[i];
            arg->data = malloc((size_t)arg->len + 1);
        } else stop("an argument is of an unknown kind");
    }
    bytes(call->error, number(1));
    call->result_len = number(8);
    call->result = array(call->result_len, 1);
    return 1;
}

static void forget(Call *call) {
    for (int i = 0; i < call->num_args; i++)
        if (call->args[i].kind == BUFFER) {
            if (call->after[i] != call->before[i]) free(call->after[i]);
            free(call->before[i]);
            free(call->args[i].data);
        }
    free(call->result);
}

/* What differs from the recording, or NULL. */
static const char *differs(Call *call, PyCFunction function, int isa) {
    for (int i = 0; i < call->num_args; i++)
        if (call->args[i].kind == BUFFER) memcpy(call->args[i].data, call->before[i], (size_t)call->args[i].len);
    if (call->chooses_isa) call->args[call->chooses_isa].integer = isa;
    PyObject tuple = {.kind = TUPLE, .items = call->args, .len = call->num_args};
    raised[0] = 0;
    PyObject *result = function(NULL, &tuple);
    if (strcmp(raised, call->error) || !result != !!raised[0]) return "another error";
    if (result && result->kind == BYTES && ((uint64_t)result->len != call->result_len || memcmp(result->data, call->result, call->result_len)))
        return "another result";
    for (int i = 0; i < call->num_args && result; i++)
        if (call->args[i].kind == BUFFER && memcmp(call->args[i].data, call->after[i], (size_t)call->args[i].len)) return "other numbers";
    return NULL;
}

static PyCFunction find(PyModuleDef *module, const char *name) {
    for (PyMethodDef *m = module->methods; m->name; m++)
        if (!strcmp(m->name, name)) return m->call;
    return NULL;
}

int main(int argc, char **argv) {
    if (argc != 2 || !(file = fopen(argv[1], "rb"))) stop("usage: replay RECORDING");
    PyModuleDef *layers = PyInit__int16(), *coder = PyInit__rans();
    PyObject level = {.kind = INTEGER}, one = {.kind = TUPLE, .items = &level, .len = 1};
    int wrong = 0, best = (int)find(layers, "isa")(NULL, NULL)->integer;
    for (int isa = best; isa >= 0; isa--) {
        long calls = 0, differing = 0;
        level.integer = isa;
        char *name = strdup((char *)find(layers, "isa_name")(NULL, &one)->data);
        rewind(file);
        for (Call call; next(&call); forget(&call), calls++) {
            PyCFunction function = find(layers, call.name);
            if (!function) function = find(coder, call.name);
            if (!function) stop("a call of an unknown function");
            const char *what = differs(&call, function, isa);
            if (what && differing++ < MAX_SHOWN) printf("%s: call %ld, %s: %s (%s)\n", name, calls, call.name, what, raised);
        }
        printf("%s: %ld calls, %ld differ; %s-endian\n", name, calls, differing, big_endian() ? "big" : "little");
        wrong |= differing || !calls;
        free(name);
    }
    return wrong;
}
