/* rANS over contiguous arrays; the byte format is FORMAT.md, chapter "Symbol streams".
 *
 * State x in [2^31, 2^63), 16-bit probabilities, 32-bit renormalisation: the loss against the tables' entropy is below 2^-15 per symbol.
 * One symbol needs one division to encode and one multiplication plus a 256-bucket lookup to decode. The GIL is released while coding.
 */
#define Py_LIMITED_API 0x030B0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <string.h>

#define RANS_LOW ((uint64_t)1 << 31)

/* All views of one call; released together. */
typedef struct {
    Py_buffer symbols, indexes, cdf, starts, offsets, lookup, data;
} Views;

static void put32(uint8_t *p, uint32_t v) { p[0] = (uint8_t)v; p[1] = (uint8_t)(v >> 8); p[2] = (uint8_t)(v >> 16); p[3] = (uint8_t)(v >> 24); }
static uint32_t get32(const uint8_t *p) { return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24; }

static inline uint64_t push(uint64_t x, uint32_t start, uint32_t freq, uint8_t **p) {
    if (x >= ((uint64_t)freq << 47)) { *p -= 4; put32(*p, (uint32_t)x); x >>= 32; }
    return ((x / freq) << 16) + (x % freq) + start;
}

static inline uint64_t push_raw(uint64_t x, uint32_t value, int bits, uint8_t **p) {
    return push(x, value << (16 - bits), (uint32_t)1 << (16 - bits), p);
}

/* `bits` (at most 16) equally likely bits. */
static inline uint64_t pop_raw(uint64_t x, uint32_t *value, int bits, const uint8_t **p, const uint8_t *end, int *bad) {
    uint32_t c = (uint32_t)(x & 0xFFFF), low = c & (((uint32_t)1 << (16 - bits)) - 1);
    *value = c >> (16 - bits);
    x = ((x >> 16) << (16 - bits)) + low;
    if (x < RANS_LOW) {
        if (*p == end) { *bad = 1; return RANS_LOW; }
        x = x << 32 | get32(*p); *p += 4;
    }
    return x;
}

/* Tables: entries of table t are cdf[starts[t] .. starts[t+1]-1]; the last but one interval's successor is the escape. That each rises strictly from
 * 0 to 65536, that its lookup fits it and that offsets are at most 2^24 in size is proved once, when a model is loaded (`tables.Tables`). */
static int check_tables(const Views *v, Py_ssize_t *num) {
    Py_ssize_t tables = v->offsets.len / 4;
    if (tables < 1 || tables > 256 || v->starts.len != (tables + 1) * 4 || v->cdf.len % 4) return 0;
    const int32_t *starts = v->starts.buf;
    if (starts[0] != 0 || starts[tables] != v->cdf.len / 4) return 0;
    for (Py_ssize_t t = 0; t < tables; t++)
        if (starts[t] < 0 || starts[t + 1] > starts[tables] || (int64_t)starts[t + 1] - starts[t] < 3) return 0;
    *num = tables;
    return 1;
}

static PyObject *encode(PyObject *self, PyObject *args) {
    Views v;
    (void)self;
    if (!PyArg_ParseTuple(args, "y*y*y*y*y*", &v.symbols, &v.indexes, &v.cdf, &v.starts, &v.offsets)) return NULL;
    PyObject *out = NULL;
    Py_ssize_t n = v.indexes.len, tables = 0;
    int bad_index = 0;
    uint8_t *buffer = NULL, *p = NULL;
    if (v.symbols.len != n * 4 || !check_tables(&v, &tables)) {
        PyErr_SetString(PyExc_ValueError, "arrays of the wrong length");
        goto done;
    }
    /* At most 16 + 6 + 33 bits a symbol, plus the state. */
    Py_ssize_t capacity = n * 8 + 16;
    buffer = PyMem_Malloc((size_t)capacity);
    if (!buffer) { PyErr_NoMemory(); goto done; }
    p = buffer + capacity;
    Py_BEGIN_ALLOW_THREADS
    const int32_t *symbols = v.symbols.buf, *starts = v.starts.buf, *offsets = v.offsets.buf;
    const uint8_t *indexes = v.indexes.buf;
    const uint32_t *cdf = v.cdf.buf;
    uint64_t x = RANS_LOW;
    for (Py_ssize_t i = n - 1; i >= 0; i--) {
        if (indexes[i] >= tables) { bad_index = 1; break; }
        const uint32_t *table = cdf + starts[indexes[i]];
        int32_t escape = starts[indexes[i] + 1] - starts[indexes[i]] - 2;
        int64_t s = (int64_t)symbols[i] - offsets[indexes[i]];
        if (s < 0 || s >= escape) {
            /* How far outside: even above the table, odd below; its length in bits, then the bits under the leading one. */
            uint64_t u = s < 0 ? 2 * (uint64_t)(-s - 1) + 1 : 2 * (uint64_t)(s - escape);
            int length = 0;
            while (length < 34 && u >> length) length++;
            int tail = length > 1 ? length - 1 : 0;
            for (int done = tail; done > 0;) {
                int bits = done % 16 ? done % 16 : 16;
                done -= bits;
                x = push_raw(x, (uint32_t)(u >> done) & (((uint32_t)1 << bits) - 1), bits, &p);
            }
            x = push_raw(x, (uint32_t)length, 6, &p);
            s = escape;
        }
        x = push(x, table[s], table[s + 1] - table[s], &p);
    }
    p -= 4; put32(p, (uint32_t)(x >> 32));
    p -= 4; put32(p, (uint32_t)x);
    Py_END_ALLOW_THREADS
    if (bad_index) PyErr_SetString(PyExc_ValueError, "a table index is out of range");
    else out = PyBytes_FromStringAndSize((char *)p, buffer + capacity - p);
done:
    PyMem_Free(buffer);
    PyBuffer_Release(&v.symbols); PyBuffer_Release(&v.indexes); PyBuffer_Release(&v.cdf);
    PyBuffer_Release(&v.starts); PyBuffer_Release(&v.offsets);
    return out;
}

static PyObject *decode(PyObject *self, PyObject *args) {
    Views v;
    (void)self;
    if (!PyArg_ParseTuple(args, "y*y*y*y*y*y*w*", &v.data, &v.indexes, &v.cdf, &v.starts, &v.offsets, &v.lookup, &v.symbols)) return NULL;
    Py_ssize_t n = v.indexes.len, tables = 0;
    int bad = 0, leftover = 0, ok = 0;
    if (v.symbols.len != n * 4 || !check_tables(&v, &tables) || v.lookup.len != tables * 512) {
        PyErr_SetString(PyExc_ValueError, "arrays of the wrong length");
        goto done;
    }
    if (v.data.len < 8 || v.data.len % 4) {
        PyErr_SetString(PyExc_ValueError, "a symbol stream has at least 8 bytes and whole words");
        goto done;
    }
    Py_BEGIN_ALLOW_THREADS
    int32_t *symbols = v.symbols.buf;
    const int32_t *starts = v.starts.buf, *offsets = v.offsets.buf;
    const uint8_t *indexes = v.indexes.buf, *p = v.data.buf, *end = p + v.data.len;
    const uint32_t *cdf = v.cdf.buf;
    const uint16_t *lookup = v.lookup.buf;
    uint64_t x = get32(p) | (uint64_t)get32(p + 4) << 32;
    p += 8;
    if (x < RANS_LOW || x >> 63) bad = 1;
    for (Py_ssize_t i = 0; i < n && !bad; i++) {
        if (indexes[i] >= tables) { bad = 1; break; }
        int t = indexes[i];
        const uint32_t *table = cdf + starts[t];
        uint32_t c = (uint32_t)(x & 0xFFFF);
        uint32_t s = lookup[t * 256 + (c >> 8)];
        while (table[s + 1] <= c) s++;
        x = (uint64_t)(table[s + 1] - table[s]) * (x >> 16) + c - table[s];
        if (x < RANS_LOW) {
            if (p == end) { bad = 1; break; }
            x = x << 32 | get32(p); p += 4;
        }
        if (s == (uint32_t)(starts[t + 1] - starts[t] - 2)) {
            uint32_t length, part;
            x = pop_raw(x, &length, 6, &p, end, &bad);
            if (bad || length > 34) { bad = 1; break; }
            int tail = length > 1 ? (int)length - 1 : 0;
            uint64_t u = length ? (uint64_t)1 << tail : 0;
            for (int done = 0; done < tail && !bad;) {
                int bits = tail - done < 16 ? tail - done : 16;
                x = pop_raw(x, &part, bits, &p, end, &bad);
                u |= (uint64_t)part << done;
                done += bits;
            }
            int64_t value = u & 1 ? (int64_t)offsets[t] - 1 - (int64_t)(u >> 1) : (int64_t)offsets[t] + s + (int64_t)(u >> 1);
            if (value < INT32_MIN || value > INT32_MAX) { bad = 1; break; }
            symbols[i] = (int32_t)value;
        } else {
            symbols[i] = (int32_t)s + offsets[t];
        }
    }
    leftover = !bad && (x != RANS_LOW || p != end);
    Py_END_ALLOW_THREADS
    if (bad) PyErr_SetString(PyExc_ValueError, "the symbol stream ends too early or does not fit its tables");
    else if (leftover) PyErr_SetString(PyExc_ValueError, "the symbol stream does not end where its symbols do");
    else ok = 1;
done:
    PyBuffer_Release(&v.data); PyBuffer_Release(&v.indexes); PyBuffer_Release(&v.cdf); PyBuffer_Release(&v.starts);
    PyBuffer_Release(&v.offsets); PyBuffer_Release(&v.lookup); PyBuffer_Release(&v.symbols);
    if (!ok) return NULL;
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"encode", encode, METH_VARARGS, "encode(symbols_i32, indexes_u8, cdf_u32, starts_i32, offsets_i32) -> bytes"},
    {"decode", decode, METH_VARARGS, "decode(data, indexes_u8, cdf_u32, starts_i32, offsets_i32, lookup_u16, out_i32)"},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_rans", NULL, -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__rans(void) { return PyModule_Create(&module); }
