/* As much of Python's C interface as the two kernels use, so that they run where no Python does: a processor that is emulated. What a kernel asks of
 * an object is answered from a recorded call; see replay.c. */
#ifndef MSINN_REPLAY_PYTHON_H
#define MSINN_REPLAY_PYTHON_H
#include <stddef.h>
#include <stdint.h>

typedef ptrdiff_t Py_ssize_t;

enum Kind { NOTHING, BUFFER, INTEGER, REAL, BYTES, TUPLE };
typedef struct PyObject {
    enum Kind kind;
    uint8_t *data; /* BUFFER, BYTES */
    Py_ssize_t len;
    int64_t integer;
    double real;
    struct PyObject *items; /* TUPLE */
} PyObject;

typedef struct { void *buf; Py_ssize_t len; } Py_buffer;
#define PyBUF_SIMPLE 0

typedef PyObject *(*PyCFunction)(PyObject *, PyObject *);
typedef struct { const char *name; PyCFunction call; int flags; const char *doc; } PyMethodDef;
typedef struct PyModuleDef {
    int head;
    const char *name, *doc;
    Py_ssize_t size;
    PyMethodDef *methods;
    void *slots, *traverse, *clear, *free;
} PyModuleDef;
#define PyModuleDef_HEAD_INIT 0
#define METH_VARARGS 1
#define METH_NOARGS 4
#define PyMODINIT_FUNC PyModuleDef *
#define PyModule_Create(definition) (definition)

extern PyObject *const Py_None;
extern const char *const PyExc_ValueError, *const PyExc_MemoryError;
#define Py_RETURN_NONE return Py_None
#define Py_BEGIN_ALLOW_THREADS {
#define Py_END_ALLOW_THREADS }

int PyArg_ParseTuple(PyObject *args, const char *format, ...);
int PyObject_GetBuffer(PyObject *object, Py_buffer *view, int flags);
void PyBuffer_Release(Py_buffer *view);
void PyErr_SetString(const char *kind, const char *message);
PyObject *PyErr_NoMemory(void);
PyObject *PyLong_FromLong(long value);
PyObject *PyUnicode_FromString(const char *text);
PyObject *PyBytes_FromStringAndSize(const char *data, Py_ssize_t len);
void *PyMem_Malloc(size_t size);
void PyMem_Free(void *p);
#endif
