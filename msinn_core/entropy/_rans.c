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

/* The next symbol, of table t. */
static inline uint64_t pop(uint64_t x, int64_t *value, int t, const Views *v, const uint8_t **p, const uint8_t *end, int *bad) {
    const int32_t *starts = v->starts.buf, *offsets = v->offsets.buf;
    const uint32_t *table = (const uint32_t *)v->cdf.buf + starts[t];
    uint32_t c = (uint32_t)(x & 0xFFFF);
    uint32_t s = ((const uint16_t *)v->lookup.buf)[t * 256 + (c >> 8)];
    while (table[s + 1] <= c) s++;
    x = (uint64_t)(table[s + 1] - table[s]) * (x >> 16) + c - table[s];
    if (x < RANS_LOW) {
        if (*p == end) { *bad = 1; return RANS_LOW; }
        x = x << 32 | get32(*p); *p += 4;
    }
    if (s != (uint32_t)(starts[t + 1] - starts[t] - 2)) {
        *value = (int64_t)s + offsets[t];
        return x;
    }
    uint32_t length, part;
    x = pop_raw(x, &length, 6, p, end, bad);
    if (*bad || length > 34) { *bad = 1; return x; }
    int tail = length > 1 ? (int)length - 1 : 0;
    uint64_t u = length ? (uint64_t)1 << tail : 0;
    for (int done = 0; done < tail && !*bad;) {
        int bits = tail - done < 16 ? tail - done : 16;
        x = pop_raw(x, &part, bits, p, end, bad);
        u |= (uint64_t)part << done;
        done += bits;
    }
    *value = u & 1 ? (int64_t)offsets[t] - 1 - (int64_t)(u >> 1) : (int64_t)offsets[t] + s + (int64_t)(u >> 1);
    return x;
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
    const uint8_t *indexes = v.indexes.buf, *p = v.data.buf, *end = p + v.data.len;
    uint64_t x = get32(p) | (uint64_t)get32(p + 4) << 32;
    p += 8;
    if (x < RANS_LOW || x >> 63) bad = 1;
    for (Py_ssize_t i = 0; i < n && !bad; i++) {
        int64_t value = 0;
        if (indexes[i] >= tables) { bad = 1; break; }
        x = pop(x, &value, indexes[i], &v, &p, end, &bad);
        if (value < INT32_MIN || value > INT32_MAX) bad = 1;
        symbols[i] = (int32_t)value;
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

/* Prediction of the first stream from its own past: FORMAT.md, chapter "The first stream". */
#define NEIGHBOURS 7
#define MAX_PREDICTION ((int64_t)1 << 20)
static const int ROWS[NEIGHBOURS] = {-1, -1, 0, -2, -1, -1, 0};
static const int COLUMNS[2][NEIGHBOURS] = {{0, 1, -1, 0, -1, 2, -2}, {-1, 0, -1, 0, -2, 1, -2}};
static const int TRUST[NEIGHBOURS] = {10, 10, 10, 10, 7, 7, 7};
#define PRIOR 3

typedef struct {
    Views v;
    Py_buffer weights, amplitudes, limits;
    Py_ssize_t columns, channels, num, tables;
    uint32_t *sizes; /* of the residuals so far */
    int64_t activity; /* of the channels before, at this position */
} Predictor;

/* Prediction and table of symbol i, from the `symbols` before it. */
static int64_t foresee(Predictor *f, const int32_t *symbols, Py_ssize_t i, int *table) {
    Py_ssize_t c = i % f->channels, position = i / f->channels, row = position / f->columns, column = position % f->columns;
    const int16_t *weights = (const int16_t *)f->weights.buf + c * NEIGHBOURS;
    int64_t sum = 2048, trusted = 0, trust = PRIOR + c;
    for (int n = 0; n < NEIGHBOURS; n++) {
        Py_ssize_t there = column + COLUMNS[row & 1][n];
        if (row + ROWS[n] < 0 || there < 0 || there >= f->columns) continue;
        Py_ssize_t at = ((row + ROWS[n]) * f->columns + there) * f->channels + c;
        sum += (int64_t)weights[n] * symbols[at];
        trusted += (int64_t)TRUST[n] * f->sizes[at];
        trust += TRUST[n];
    }
    if (c == 0) f->activity = 0;
    int64_t base = ((const int64_t *)f->amplitudes.buf)[((const uint8_t *)f->v.indexes.buf)[i]];
    int64_t wanted = (trusted * 65536 + PRIOR * base + f->activity * base / 256) / trust;
    const int64_t *limits = f->limits.buf;
    int low = 0, high = (int)f->tables - 1;
    while (low < high) {
        int middle = (low + high) / 2;
        if (limits[middle] < wanted) low = middle + 1; else high = middle;
    }
    *table = low;
    int64_t prediction = sum >= 0 ? sum / 4096 : -((4095 - sum) / 4096);
    return prediction < -MAX_PREDICTION ? -MAX_PREDICTION : prediction > MAX_PREDICTION ? MAX_PREDICTION : prediction;
}

static void seen(Predictor *f, Py_ssize_t i, int64_t residual) {
    int64_t base = ((const int64_t *)f->amplitudes.buf)[((const uint8_t *)f->v.indexes.buf)[i]];
    uint64_t size = (uint64_t)(residual < 0 ? -residual : residual), activity = (size << 24) / (uint64_t)base;
    f->sizes[i] = (uint32_t)size;
    f->activity += (int64_t)(activity < (1 << 24) ? activity : 1 << 24);
}

/* Amplitudes are 1 to 2^30 (`first_stream.Prediction`), so that no sum leaves 64 bits. */
static int begin(Predictor *f) {
    f->num = f->v.indexes.len;
    if (f->columns < 1 || f->channels < 1 || f->num % (f->columns * f->channels) || f->weights.len != f->channels * NEIGHBOURS * 2 ||
        f->amplitudes.len != f->tables * 8 || f->limits.len != (f->tables - 1) * 8 || f->v.symbols.len != f->num * 4) {
        PyErr_SetString(PyExc_ValueError, "arrays of the wrong length");
        return 0;
    }
    for (Py_ssize_t i = 0; i < f->num; i++)
        if (((const uint8_t *)f->v.indexes.buf)[i] >= f->tables) {
            PyErr_SetString(PyExc_ValueError, "a table index is out of range");
            return 0;
        }
    f->sizes = PyMem_Malloc((size_t)(f->num ? f->num : 1) * 4);
    if (!f->sizes) PyErr_NoMemory();
    return f->sizes != NULL;
}

static void end_of(Predictor *f) {
    PyMem_Free(f->sizes);
    PyBuffer_Release(&f->weights); PyBuffer_Release(&f->amplitudes); PyBuffer_Release(&f->limits);
    PyBuffer_Release(&f->v.symbols); PyBuffer_Release(&f->v.indexes);
}

static PyObject *predicted(PyObject *self, PyObject *args) {
    Predictor f = {0};
    Py_buffer residuals, chosen;
    int wide = 0, ok = 0;
    (void)self;
    if (!PyArg_ParseTuple(args, "y*y*y*y*y*nnw*w*", &f.v.symbols, &f.v.indexes, &f.weights, &f.amplitudes, &f.limits, &f.columns, &f.channels,
                          &residuals, &chosen)) return NULL;
    f.tables = f.amplitudes.len / 8;
    if (f.tables < 1 || f.tables > 256 || residuals.len != f.v.symbols.len || chosen.len != f.v.indexes.len) {
        PyErr_SetString(PyExc_ValueError, "arrays of the wrong length");
        goto done;
    }
    if (!begin(&f)) goto done;
    Py_BEGIN_ALLOW_THREADS
    const int32_t *symbols = f.v.symbols.buf;
    for (Py_ssize_t i = 0; i < f.num; i++) {
        int table;
        int64_t residual = symbols[i] - foresee(&f, symbols, i, &table);
        if (residual < INT32_MIN || residual > INT32_MAX) { wide = 1; break; }
        ((int32_t *)residuals.buf)[i] = (int32_t)residual;
        ((uint8_t *)chosen.buf)[i] = (uint8_t)table;
        seen(&f, i, residual);
    }
    Py_END_ALLOW_THREADS
    if (wide) PyErr_SetString(PyExc_ValueError, "a symbol is too far from its prediction");
    else ok = 1;
done:
    end_of(&f);
    PyBuffer_Release(&residuals); PyBuffer_Release(&chosen);
    if (!ok) return NULL;
    Py_RETURN_NONE;
}

static PyObject *decode_predicted(PyObject *self, PyObject *args) {
    Predictor f = {0};
    int bad = 0, leftover = 0, ok = 0;
    (void)self;
    if (!PyArg_ParseTuple(args, "y*y*y*y*y*y*y*y*y*nnw*", &f.v.data, &f.v.indexes, &f.v.cdf, &f.v.starts, &f.v.offsets, &f.v.lookup, &f.weights,
                          &f.amplitudes, &f.limits, &f.columns, &f.channels, &f.v.symbols)) return NULL;
    if (!check_tables(&f.v, &f.tables) || f.v.lookup.len != f.tables * 512) {
        PyErr_SetString(PyExc_ValueError, "arrays of the wrong length");
        goto done;
    }
    if (f.v.data.len < 8 || f.v.data.len % 4) {
        PyErr_SetString(PyExc_ValueError, "a symbol stream has at least 8 bytes and whole words");
        goto done;
    }
    if (!begin(&f)) goto done;
    Py_BEGIN_ALLOW_THREADS
    int32_t *symbols = f.v.symbols.buf;
    const uint8_t *p = f.v.data.buf, *end = p + f.v.data.len;
    uint64_t x = get32(p) | (uint64_t)get32(p + 4) << 32;
    p += 8;
    if (x < RANS_LOW || x >> 63) bad = 1;
    for (Py_ssize_t i = 0; i < f.num && !bad; i++) {
        int table;
        int64_t residual = 0, prediction = foresee(&f, symbols, i, &table);
        x = pop(x, &residual, table, &f.v, &p, end, &bad);
        if (residual < INT32_MIN || residual > INT32_MAX || residual + prediction < INT32_MIN || residual + prediction > INT32_MAX) { bad = 1; break; }
        symbols[i] = (int32_t)(residual + prediction);
        seen(&f, i, residual);
    }
    leftover = !bad && (x != RANS_LOW || p != end);
    Py_END_ALLOW_THREADS
    if (bad) PyErr_SetString(PyExc_ValueError, "the symbol stream ends too early or does not fit its tables");
    else if (leftover) PyErr_SetString(PyExc_ValueError, "the symbol stream does not end where its symbols do");
    else ok = 1;
done:
    end_of(&f);
    PyBuffer_Release(&f.v.data); PyBuffer_Release(&f.v.cdf); PyBuffer_Release(&f.v.starts); PyBuffer_Release(&f.v.offsets);
    PyBuffer_Release(&f.v.lookup);
    if (!ok) return NULL;
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"encode", encode, METH_VARARGS, "encode(symbols_i32, indexes_u8, cdf_u32, starts_i32, offsets_i32) -> bytes"},
    {"decode", decode, METH_VARARGS, "decode(data, indexes_u8, cdf_u32, starts_i32, offsets_i32, lookup_u16, out_i32)"},
    {"predicted", predicted, METH_VARARGS,
     "predicted(symbols_i32, indexes_u8, weights_i16, amplitudes_i64, limits_i64, columns, channels, residuals_i32, tables_u8)"},
    {"decode_predicted", decode_predicted, METH_VARARGS,
     "decode_predicted(data, indexes_u8, cdf_u32, starts_i32, offsets_i32, lookup_u16, weights_i16, amplitudes_i64, limits_i64, columns, channels, out_i32)"},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_rans", NULL, -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__rans(void) { return PyModule_Create(&module); }
