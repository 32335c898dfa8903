/* Exact integer layers; the arithmetic is INTEGER.md. int16 activations and weights, int32 sums that the packer has proved cannot overflow, so
 * that every order of summation, every instruction set and every split into rows gives the same bits. The GIL is released while computing.
 * Lengths, and numbers that are given one by one, are checked at every call; values inside arrays (shifts, tables, weights with their bound) are
 * checked once, when a model is loaded: `network.IntegerNetwork` refuses what leaves the ranges of INTEGER.md, section 6.
 */
#define Py_LIMITED_API 0x030B0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined(__GLIBC__)
#include <malloc.h>
#endif
/* MSINN_PLAIN_C: no intrinsics, as on processors that are neither of these. */
#if defined(__x86_64__) && !defined(MSINN_PLAIN_C)
#define WITH_X86 1
#include <immintrin.h>
#if defined(__linux__) && (defined(__clang__) ? __clang_major__ >= 12 : __GNUC__ >= 11)
#define WITH_AMX 1
#include <sys/syscall.h>
#include <unistd.h>
#endif
#elif defined(__aarch64__) && !defined(__AARCH64EB__) && !defined(MSINN_PLAIN_C)
#define WITH_NEON 1
#include <arm_neon.h>
#endif

#define LANES 16 /* output channels of one packed block of weights: [block][tap][channel pair][16][2] */
#define MAX_TAPS 9
#define MAX_PIXELS 12
#define MAX_SIDE (1 << 20)

enum { DENSE = 0, EDGES = 1, CORNERS = 2, POINT = 3 };

/* One block of 16 output channels for as many neighbouring pixels as the instruction set has registers for. */
typedef void (*Micro)(const int16_t *const *px, int taps, int pairs, int stride, const int16_t *w, int32_t *out, int out_stride);
typedef void (*Epilogue)(const int32_t *, const int32_t *, const int32_t *, int, const int16_t *, int16_t *, int);
typedef void (*Unit)(const int32_t *, const int32_t *, int, const int16_t *, const int32_t *, double, const double *, const double *, int32_t *, Py_ssize_t, int, int);
typedef void (*Narrow)(const int32_t *, Py_ssize_t, const int32_t *, int16_t *, Py_ssize_t, Py_ssize_t, int);
typedef void (*Mix)(const int32_t *, const double *, const double *, int32_t *, Py_ssize_t, int);
typedef void (*Gather)(const int32_t *, const int32_t *, int16_t *, Py_ssize_t, Py_ssize_t);
typedef void (*Correct)(const int32_t *, const int16_t *, int, uint8_t *, Py_ssize_t, Py_ssize_t);
typedef void (*Couple)(int32_t *, const int16_t *, const float *, double, Py_ssize_t, int, int);
typedef void (*Levels)(const int16_t *, const int32_t *, const int32_t *, uint8_t *, Py_ssize_t, int, int, int, int);
typedef void (*Dequantise)(const int32_t *, const int16_t *, const int32_t *, int32_t *, Py_ssize_t, int, int);
typedef void (*Quantise)(const int32_t *, const int16_t *, const uint8_t *, const float *, const float *, int32_t *, Py_ssize_t, int, int);
typedef int (*Ceiling)(long);

#define INLINED inline __attribute__((always_inline))

/* What differs between instruction sets; the table of those of this processor, from the worst to the best, is ISAS below. */
typedef struct {
    const char *name;
    int pixels;      /* that `micro` does at once */
    Micro micro;
    Micro micro_two; /* two blocks at once; may be NULL */
    Epilogue epilogue;
    Unit unit;
    Mix mix;
    Narrow narrow;
    Gather gather;
    Correct corrected;
    Couple couple;
    Levels levels;
    Dequantise dequantise;
    Quantise quantise;
    int tiles;       /* whether layers are done by `conv_tiles` instead */
    Ceiling ceiling; /* so many rounds of the best way to multiply; returns products a round */
} Isa;

static int best_isa(void);
static const Isa *isa_of(int level); /* the best one if there is no such level here */

static void micro_scalar(const int16_t *const *px, int taps, int pairs, int stride, const int16_t *w, int32_t *out, int out_stride) {
    (void)stride; (void)out_stride;
    int32_t acc[LANES] = {0};
    for (int t = 0; t < taps; t++)
        for (int p = 0; p < pairs; p++, w += 2 * LANES) {
            int32_t a = px[t][2 * p], b = px[t][2 * p + 1];
            for (int o = 0; o < LANES; o++) acc[o] += a * w[2 * o] + b * w[2 * o + 1];
        }
    memcpy(out, acc, sizeof acc);
}

#if WITH_X86 || WITH_NEON
static inline int32_t pair(const int16_t *p) { int32_t v; memcpy(&v, p, 4); return v; }
#endif

#if WITH_X86
__attribute__((target("sse4.1")))
static void micro_sse41(const int16_t *const *px, int taps, int pairs, int stride, const int16_t *w, int32_t *out, int out_stride) {
    __m128i acc[3][4];
    for (int j = 0; j < 3; j++) for (int b = 0; b < 4; b++) acc[j][b] = _mm_setzero_si128();
    for (int t = 0; t < taps; t++)
        for (int p = 0; p < pairs; p++, w += 2 * LANES) {
            __m128i v[4];
            for (int b = 0; b < 4; b++) v[b] = _mm_loadu_si128((const __m128i *)(w + 8 * b));
            for (int j = 0; j < 3; j++) {
                __m128i x = _mm_set1_epi32(pair(px[t] + j * stride + 2 * p));
                for (int b = 0; b < 4; b++) acc[j][b] = _mm_add_epi32(acc[j][b], _mm_madd_epi16(x, v[b]));
            }
        }
    for (int j = 0; j < 3; j++) for (int b = 0; b < 4; b++) _mm_storeu_si128((__m128i *)(out + j * out_stride + 4 * b), acc[j][b]);
}

__attribute__((target("avx2")))
static void micro_avx2(const int16_t *const *px, int taps, int pairs, int stride, const int16_t *w, int32_t *out, int out_stride) {
    __m256i acc[6][2];
    for (int j = 0; j < 6; j++) acc[j][0] = acc[j][1] = _mm256_setzero_si256();
    for (int t = 0; t < taps; t++)
        for (int p = 0; p < pairs; p++, w += 2 * LANES) {
            __m256i v0 = _mm256_loadu_si256((const __m256i *)w), v1 = _mm256_loadu_si256((const __m256i *)(w + 16));
#pragma GCC unroll 6
            for (int j = 0; j < 6; j++) {
                __m256i x = _mm256_set1_epi32(pair(px[t] + j * stride + 2 * p));
                acc[j][0] = _mm256_add_epi32(acc[j][0], _mm256_madd_epi16(x, v0));
                acc[j][1] = _mm256_add_epi32(acc[j][1], _mm256_madd_epi16(x, v1));
            }
        }
    for (int j = 0; j < 6; j++) {
        _mm256_storeu_si256((__m256i *)(out + j * out_stride), acc[j][0]);
        _mm256_storeu_si256((__m256i *)(out + j * out_stride + 8), acc[j][1]);
    }
}

__attribute__((target("avx512f,avx512bw,avx512vl,avx512vnni")))
static void micro_avx512(const int16_t *const *px, int taps, int pairs, int stride, const int16_t *w, int32_t *out, int out_stride) {
    __m512i acc[12];
#pragma GCC unroll 12
    for (int j = 0; j < 12; j++) acc[j] = _mm512_setzero_si512();
    for (int t = 0; t < taps; t++) {
        const int16_t *x = px[t];
        for (int p = 0; p < pairs; p++, w += 2 * LANES, x += 2) {
            __m512i v = _mm512_loadu_si512(w);
#pragma GCC unroll 12
            for (int j = 0; j < 12; j++) acc[j] = _mm512_dpwssd_epi32(acc[j], _mm512_set1_epi32(pair(x + j * stride)), v);
        }
    }
#pragma GCC unroll 12
    for (int j = 0; j < 12; j++) _mm512_storeu_si512(out + j * out_stride, acc[j]);
}

/* Two blocks at once: each input is broadcast once for 32 output channels. */
__attribute__((target("avx512f,avx512bw,avx512vl,avx512vnni")))
static void micro_avx512_two(const int16_t *const *px, int taps, int pairs, int stride, const int16_t *w, int32_t *out, int out_stride) {
    __m512i acc[12][2];
    const int16_t *w1 = w + (size_t)taps * pairs * 2 * LANES;
#pragma GCC unroll 12
    for (int j = 0; j < 12; j++) acc[j][0] = acc[j][1] = _mm512_setzero_si512();
    for (int t = 0; t < taps; t++) {
        const int16_t *x = px[t];
        for (int p = 0; p < pairs; p++, w += 2 * LANES, w1 += 2 * LANES, x += 2) {
            __m512i v0 = _mm512_loadu_si512(w), v1 = _mm512_loadu_si512(w1);
#pragma GCC unroll 12
            for (int j = 0; j < 12; j++) {
                __m512i b = _mm512_set1_epi32(pair(x + j * stride));
                acc[j][0] = _mm512_dpwssd_epi32(acc[j][0], b, v0);
                acc[j][1] = _mm512_dpwssd_epi32(acc[j][1], b, v1);
            }
        }
    }
#pragma GCC unroll 12
    for (int j = 0; j < 12; j++) {
        _mm512_storeu_si512(out + j * out_stride, acc[j][0]);
        _mm512_storeu_si512(out + j * out_stride + LANES, acc[j][1]);
    }
}
#endif

#if WITH_NEON
/* Part of every 64-bit ARM. `smlal` does 4 products of int16; `sdot` is of no use: it takes int8, and the four limb products of an int16 one give
 * back what it gains. `vld2q` parts the pairs of the packed weights. */
static void micro_neon(const int16_t *const *px, int taps, int pairs, int stride, const int16_t *w, int32_t *out, int out_stride) {
    int32x4_t acc[4][4];
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) acc[j][0] = acc[j][1] = acc[j][2] = acc[j][3] = vdupq_n_s32(0);
    for (int t = 0; t < taps; t++) {
        const int16_t *x = px[t];
        for (int p = 0; p < pairs; p++, w += 2 * LANES, x += 2) {
            int16x8x2_t v0 = vld2q_s16(w), v1 = vld2q_s16(w + LANES);
#pragma GCC unroll 4
            for (int j = 0; j < 4; j++) {
                int16x4_t b = vreinterpret_s16_s32(vdup_n_s32(pair(x + j * stride)));
                acc[j][0] = vmlal_lane_s16(acc[j][0], vget_low_s16(v0.val[0]), b, 0);
                acc[j][1] = vmlal_high_lane_s16(acc[j][1], v0.val[0], b, 0);
                acc[j][2] = vmlal_lane_s16(acc[j][2], vget_low_s16(v1.val[0]), b, 0);
                acc[j][3] = vmlal_high_lane_s16(acc[j][3], v1.val[0], b, 0);
                acc[j][0] = vmlal_lane_s16(acc[j][0], vget_low_s16(v0.val[1]), b, 1);
                acc[j][1] = vmlal_high_lane_s16(acc[j][1], v0.val[1], b, 1);
                acc[j][2] = vmlal_lane_s16(acc[j][2], vget_low_s16(v1.val[1]), b, 1);
                acc[j][3] = vmlal_high_lane_s16(acc[j][3], v1.val[1], b, 1);
            }
        }
    }
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++)
        for (int b = 0; b < 4; b++) vst1q_s32(out + j * out_stride + 4 * b, acc[j][b]);
}
#endif

static inline int32_t clamp16(int32_t v) { return v < -32768 ? -32768 : v > 32767 ? 32767 : v; }

/* Requantise, activate, add: one pixel. `bias` holds the rounding constant. */
#define EPILOGUE(NAME, ATTRIBUTE)                                                                                                              \
    ATTRIBUTE static void NAME(const int32_t *restrict acc, const int32_t *restrict bias, const int32_t *restrict shift, int leaky,            \
                               const int16_t *restrict add, int16_t *restrict out, int channels) {                                             \
        for (int o = 0; o < channels; o++) {                                                                                                   \
            int32_t v = clamp16((acc[o] + bias[o]) >> shift[o]);                                                                               \
            if (leaky) v = v < 0 ? (v * 164 + 8192) >> 14 : v;                                                                                 \
            if (add) v = clamp16(v + add[o]);                                                                                                  \
            out[o] = (int16_t)v;                                                                                                               \
        }                                                                                                                                      \
    }
EPILOGUE(epilogue_plain, )
#if WITH_X86
EPILOGUE(epilogue_avx2, __attribute__((target("avx2"))))

#define AVX512_TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq")))

/* What EPILOGUE does, of 16 channels or of those in `mask`; `v` holds their sums with the bias. */
AVX512_TARGET static inline void finish_avx512(__m512i v, __m512i shift, int leaky, const int16_t *add, int16_t *out, __mmask16 mask) {
    __m256i y = _mm512_cvtsepi32_epi16(_mm512_srav_epi32(v, shift));
    if (leaky) y = _mm256_max_epi16(y, _mm256_mulhrs_epi16(y, _mm256_set1_epi16(2 * 164))); /* which rounds to bit 15, so that it is >> 14 */
    if (add) y = _mm256_adds_epi16(y, _mm256_maskz_loadu_epi16(mask, add));
    _mm256_mask_storeu_epi16(out, mask, y);
}

AVX512_TARGET static inline __mmask16 first_channels(int n) { return n < LANES ? (__mmask16)((1u << n) - 1) : 0xffff; }

AVX512_TARGET static void epilogue_avx512(const int32_t *restrict acc, const int32_t *restrict bias, const int32_t *restrict shift, int leaky,
                                          const int16_t *restrict add, int16_t *restrict out, int channels) {
    for (int o = 0; o < channels; o += LANES)
        finish_avx512(_mm512_add_epi32(_mm512_loadu_si512(acc + o), _mm512_loadu_si512(bias + o)), _mm512_loadu_si512(shift + o), leaky,
                      add ? add + o : NULL, out + o, first_channels(channels - o));
}
#endif

/* Taps as (row, column) offsets. In a checkerboard half, column j of row r is column 2j + offset of the picture, so neighbours to the left and
 * right lie at j - 1 and j, or at j and j + 1. */
static int taps_of(int mode, int offset, int (*taps)[2]) {
    int left = offset ? 0 : -1, right = left + 1, n = 0;
    if (mode == POINT) { taps[0][0] = taps[0][1] = 0; return 1; }
    if (mode == DENSE) {
        for (int r = -1; r <= 1; r++) for (int c = -1; c <= 1; c++, n++) { taps[n][0] = r; taps[n][1] = c; }
        return n;
    }
    if (mode == EDGES) {
        int edges[4][2] = {{-1, 0}, {0, left}, {0, right}, {1, 0}};
        memcpy(taps, edges, sizeof edges);
        return 4;
    }
    int corners[5][2] = {{-1, left}, {-1, right}, {0, 0}, {1, left}, {1, right}};
    memcpy(taps, corners, sizeof corners);
    return 5;
}

/* A layer's operands, of the sizes that `conv` has checked. */
typedef struct {
    const int16_t *x, *weights, *add;
    const int32_t *bias, *shift;
    int16_t *out;
    int h, width, cin, cout, mode, parity, leaky, row0, row1;
    const uint8_t *tiles;
} Operands;

/* AMX takes weights as tiles of 64 inputs for 16 output channels; they stand behind the other form of them, see `ops.Layer`. */
#define TILE_BYTES 64
#define TILE (16 * TILE_BYTES)

/* Inputs of neighbouring taps of a row, or of the columns of a 3x3 layer, which lie in one piece. */
typedef struct { int row, column, inputs; } Run;

static int num_tiles(int inputs) { return (inputs + TILE_BYTES - 1) / TILE_BYTES; }

static int in_columns(int mode, int cin) { return mode == DENSE && cin <= 48 && num_tiles(9 * cin) < 3 * num_tiles(3 * cin); }

static int runs_of(int mode, int offset, int cin, Run *runs) {
    if (in_columns(mode, cin)) { runs[0] = (Run){0, -1, 9 * cin}; return 1; }
    int taps[MAX_TAPS][2], n = taps_of(mode, offset, taps), count = 0;
    for (int t = 0; t < n; t++)
        if (t && taps[t][0] == taps[t - 1][0] && taps[t][1] == taps[t - 1][1] + 1) runs[count - 1].inputs += cin;
        else runs[count++] = (Run){taps[t][0], taps[t][1], cin};
    return count;
}

/* Bytes of a layer's weights as tiles: a low and a high one of each; in columns for each turn of the three rows. */
static Py_ssize_t size_of_tiles(int mode, int cin, int blocks) {
    Run runs[MAX_TAPS];
    Py_ssize_t tiles = 0;
    for (int i = runs_of(mode, 0, cin, runs) - 1; i >= 0; i--) tiles += num_tiles(runs[i].inputs);
    return tiles * blocks * 2 * TILE * (in_columns(mode, cin) ? 3 : 1);
}

#if WITH_AMX
/* AMX multiplies bytes: 16 pixels x 64 inputs by 64 inputs x 16 output channels in 16 cycles. An int16 is two of them, x = 256 h + l with h signed and
 * l unsigned, and a product of two is four: 2^16 h h' + 2^8 (h l' + l h') + l l'. Each of the three sums wraps, and so does what they add up to,
 * but it is the layer's sum modulo 2^32, which the packer has proved to lie in 32 bits: so it is that sum.
 *
 * What a tile multiplies has to lie in one piece, a run. Taps that stand side by side in a row are one, for the channels of neighbouring pixels lie one
 * after the other: the rows of a tile may overlap, and a 3x3 layer is three runs. Where that would leave much of the tiles empty (`in_columns`) it is one:
 * the channels of a column's three pixels are laid one after the other. What a tile reads beyond its run meets weights of zero. */
#define TILE_PIXELS 16
#define AMX_TARGET __attribute__((target("amx-tile,amx-int8,avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi")))

/* Limbs of `n` activations. */
AMX_TARGET static void split(const int16_t *x, uint8_t *low, uint8_t *high, size_t n) {
    uint8_t even[64], odd[64];
    for (int i = 0; i < 64; i++) { even[i] = (uint8_t)(2 * i); odd[i] = (uint8_t)(2 * i + 1); }
    const __m512i lows = _mm512_loadu_si512(even), highs = _mm512_loadu_si512(odd);
    size_t i = 0;
    for (; i + 64 <= n; i += 64) {
        __m512i a = _mm512_loadu_si512(x + i), b = _mm512_loadu_si512(x + i + 32);
        _mm512_storeu_si512(low + i, _mm512_permutex2var_epi8(a, lows, b));
        _mm512_storeu_si512(high + i, _mm512_permutex2var_epi8(a, highs, b));
    }
    for (; i < n; i += 32) {
        __mmask32 mask = n - i < 32 ? (1u << (n - i)) - 1 : 0xffffffffu;
        __m512i v = _mm512_maskz_loadu_epi16(mask, x + i);
        _mm256_mask_storeu_epi8(low + i, mask, _mm512_cvtepi16_epi8(v));
        _mm256_mask_storeu_epi8(high + i, mask, _mm512_cvtepi16_epi8(_mm512_srli_epi16(v, 8)));
    }
}

/* The same of pixels of `cin` channels, which come to lie `stride` apart. */
AMX_TARGET static void split_apart(const int16_t *x, uint8_t *low, uint8_t *high, Py_ssize_t pixels, int cin, Py_ssize_t stride) {
    uint8_t order[64];
    for (int i = 0; i < 64; i++) order[i] = (uint8_t)(i < 32 ? 2 * i : 2 * i - 63);
    const __m512i limbs = _mm512_loadu_si512(order);
    for (int i = 0; i < cin; i += 32) {
        const __mmask32 mask = cin - i < 32 ? (1u << (cin - i)) - 1 : 0xffffffffu;
        const int16_t *from = x + i;
        uint8_t *l = low + i, *h = high + i;
        for (Py_ssize_t p = 0; p < pixels; p++, from += cin, l += stride, h += stride) {
            __m512i v = _mm512_permutexvar_epi8(limbs, _mm512_maskz_loadu_epi16(mask, from));
            _mm256_mask_storeu_epi8(l, mask, _mm512_castsi512_si256(v));
            _mm256_mask_storeu_epi8(h, mask, _mm512_extracti64x4_epi64(v, 1));
        }
    }
}

/* Where limbs of a strip lie: two planes of some rows of pixels. */
typedef struct {
    uint8_t *low, *high;
    Py_ssize_t pixel, row; /* bytes from one to the next */
} Planes;

/* A row's pixels [start, stop), zeros where they lie outside the picture, to the given place. */
AMX_TARGET static void lay(const Operands *o, int row, Py_ssize_t start, Py_ssize_t stop, Py_ssize_t width, const Planes *planes, Py_ssize_t place) {
    uint8_t *low = planes->low + place, *high = planes->high + place;
    Py_ssize_t from = start < 0 ? 0 : start, to = stop > width ? width : stop;
    if (row < 0 || row >= o->h) from = to = stop;
    for (Py_ssize_t p = start; p < stop; p++)
        if (p < from || p >= to) {
            memset(low + (p - start) * planes->pixel, 0, (size_t)o->cin);
            memset(high + (p - start) * planes->pixel, 0, (size_t)o->cin);
        }
    if (from >= to) return;
    const int16_t *x = o->x + ((Py_ssize_t)row * o->width + from) * o->cin;
    low += (from - start) * planes->pixel;
    high += (from - start) * planes->pixel;
    if (planes->pixel == o->cin) split(x, low, high, (size_t)(to - from) * o->cin);
    else split_apart(x, low, high, to - from, o->cin, planes->pixel);
}

/* What became of one tile's sums: 16 pixels of at most 16 channels. */
typedef struct {
    const int32_t *bias, *shift;
    size_t at; /* of the first value among the layer's outputs */
    int count, channels;
} Summed;

/* A tile's four sums put together, requantised, activated, added to. */
AMX_TARGET static inline void epilogue_tiles(const Operands *o, const int32_t *sums, const Summed *t) {
    const __m512i bias = _mm512_loadu_si512(t->bias), shift = _mm512_loadu_si512(t->shift);
    const __mmask16 mask = first_channels(t->channels);
    const int leaky = o->leaky, stride = o->cout;
    const int16_t *add = o->add ? o->add + t->at : NULL;
    int16_t *out = o->out + t->at;
    for (int j = 0; j < t->count; j++, sums += LANES, out += stride) {
        __m512i high = _mm512_slli_epi32(_mm512_load_si512(sums), 16), low = _mm512_add_epi32(_mm512_load_si512(sums + 768), bias);
        __m512i middle = _mm512_slli_epi32(_mm512_add_epi32(_mm512_load_si512(sums + 256), _mm512_load_si512(sums + 512)), 8);
        finish_avx512(_mm512_add_epi32(_mm512_add_epi32(high, middle), low), shift, leaky, add, out, mask);
        if (add) add += stride;
    }
}

static const struct { uint8_t palette, start, reserved[14]; uint16_t bytes[16]; uint8_t rows[16]; } TILES = {
    1, 0, {0}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};

#define STRIP_BYTES 24576

/* Rows [row0, row1); returns 0, or -1 without memory. A strip of columns at a time, whose limbs, of three rows in turn, stay in the first cache. */
AMX_TARGET static int conv_tiles(const Operands *o) {
    int cin = o->cin, blocks = (o->cout + LANES - 1) / LANES, columns = in_columns(o->mode, cin), border = o->mode == POINT ? 0 : 1;
    Run runs[MAX_TAPS];
    int num_runs = runs_of(o->mode, 0, cin, runs), steps = 0;
    for (int i = 0; i < num_runs; i++) steps += num_tiles(runs[i].inputs);
    /* A 1x1 layer knows no rows: all its pixels are one. */
    Py_ssize_t width = o->width, rows = o->row1 - o->row0;
    if (o->mode == POINT) { width *= rows; rows = 1; }
    Py_ssize_t strip = STRIP_BYTES / (2 * (border ? 3 : 1) * cin) / TILE_PIXELS * TILE_PIXELS;
    if (strip < 2 * TILE_PIXELS) strip = 2 * TILE_PIXELS;
    Planes planes = {.pixel = columns ? 3 * cin : cin};
    planes.row = columns ? cin : ((strip + 2 + TILE_PIXELS) * cin + TILE_BYTES - 1) / TILE_BYTES * TILE_BYTES;
    size_t plane = (size_t)(columns ? (strip + 2 + TILE_PIXELS) * planes.pixel : (border ? 3 : 1) * planes.row) + 2 * TILE_BYTES;
    plane -= plane % TILE_BYTES;
    uint8_t *memory = malloc(2 * plane + TILE_BYTES);
    if (!memory) return -1;
    planes.low = memory + (-(uintptr_t)memory & (TILE_BYTES - 1));
    planes.high = planes.low + plane;
    int32_t sums[4 * 256] __attribute__((aligned(64)));
    Summed last = {o->bias, o->shift, 0, 0, 0};
    _tile_loadconfig(&TILES);
    for (Py_ssize_t start = 0; start < width; start += strip) {
        Py_ssize_t stop = start + strip < width ? start + strip : width;
        for (int i = 0; i < 2 * border; i++) lay(o, o->row0 + i - 1, start - 1, stop + 1, width, &planes, i * planes.row);
        for (int r = 0; r < rows; r++) {
            int turn = r % 3; /* the place of the row before */
            if (border) lay(o, o->row0 + r + 1, start - 1, stop + 1, width, &planes, (turn + 2) % 3 * planes.row);
            else lay(o, o->row0, start, stop, width, &planes, 0);
            runs_of(o->mode, (o->row0 + r + o->parity) & 1, cin, runs);
            for (int b = 0; b < blocks; b++)
                for (Py_ssize_t c = start; c < stop; c += TILE_PIXELS) {
                    const uint8_t *w = o->tiles + (size_t)((columns ? turn * blocks : 0) + b) * steps * 2 * TILE;
                    _tile_zero(0);
                    _tile_zero(1);
                    _tile_zero(2);
                    _tile_zero(3);
                    for (int i = 0; i < num_runs; i++) {
                        Py_ssize_t at = (columns || !border ? 0 : (turn + 1 + runs[i].row) % 3 * planes.row) + (c - start + border + runs[i].column) * planes.pixel;
                        const uint8_t *low = planes.low + at, *high = planes.high + at;
                        for (int done = 0; done < runs[i].inputs; done += TILE_BYTES, w += 2 * TILE) {
                            _tile_loadd(4, low + done, planes.pixel);
                            _tile_loadd(6, w, TILE_BYTES);
                            _tile_dpbuud(3, 4, 6);
                            _tile_loadd(5, high + done, planes.pixel);
                            _tile_dpbsud(1, 5, 6);
                            _tile_loadd(7, w + TILE, TILE_BYTES);
                            _tile_dpbusd(2, 4, 7);
                            _tile_dpbssd(0, 5, 7);
                        }
                    }
                    /* The tile before is finished meanwhile. */
                    epilogue_tiles(o, sums, &last);
                    _tile_stored(0, sums, LANES * 4);
                    _tile_stored(1, sums + 256, LANES * 4);
                    _tile_stored(2, sums + 512, LANES * 4);
                    _tile_stored(3, sums + 768, LANES * 4);
                    last = (Summed){o->bias + b * LANES, o->shift + b * LANES, (size_t)(((Py_ssize_t)o->row0 + r) * o->width + c) * o->cout + b * LANES,
                                    stop - c < TILE_PIXELS ? (int)(stop - c) : TILE_PIXELS, o->cout - b * LANES};
                }
        }
    }
    epilogue_tiles(o, sums, &last);
    _tile_release();
    free(memory);
    return 0;
}
#endif

static PyObject *conv(PyObject *self, PyObject *args) {
    Py_buffer x, w, bias, shift, add, out;
    int h, width, cin, cout, mode, parity, leaky, row0, row1, isa;
    PyObject *add_object;
    (void)self;
    if (!PyArg_ParseTuple(args, "y*y*y*y*Ow*iiiiiiiiii", &x, &w, &bias, &shift, &add_object, &out, &h, &width, &cin, &cout, &mode, &parity, &leaky,
                          &row0, &row1, &isa))
        return NULL;
    int has_add = add_object != Py_None;
    const char *problem = NULL;
    if (has_add && PyObject_GetBuffer(add_object, &add, PyBUF_SIMPLE)) { has_add = 0; problem = "the addend is no buffer"; }
    int blocks = (cout + LANES - 1) / LANES, num_taps = mode == POINT ? 1 : mode == DENSE ? 9 : mode == EDGES ? 4 : 5;
    Py_ssize_t pixels = (Py_ssize_t)h * width, plain = 0, tiles = 0;
    /* Bounded before they are multiplied. */
    if (!problem && (h < 1 || width < 1 || h > MAX_SIDE || width > MAX_SIDE || cout > 8192 || parity < 0 || parity > 1 << 24))
        problem = "sizes of the layer's operands are out of range";
    if (!problem && cin > 0 && cin <= 8192 && mode >= 0 && mode <= POINT) {
        plain = (Py_ssize_t)blocks * num_taps * cin * LANES * 2;
        tiles = size_of_tiles(mode, cin, blocks);
    }
    if (!problem && (cin < 2 || cin % 2 || cin > 8192 || cout < 1 || cout > 8192 || mode < 0 || mode > POINT || row0 < 0 ||
                     row1 > h || row0 >= row1 || x.len != pixels * cin * 2 || out.len != pixels * cout * 2 || bias.len != blocks * LANES * 4 ||
                     shift.len != blocks * LANES * 4 || (w.len != plain && w.len != plain + tiles) ||
                     (has_add && add.len != out.len)))
        problem = "sizes of the layer's operands contradict each other";
    const Isa *set = isa_of(isa);
    int16_t *pad = NULL;
    int32_t *acc = NULL;
#if WITH_AMX
    if (!problem && set->tiles && w.len != plain) {
        Operands operands = {x.buf, w.buf, has_add ? add.buf : NULL, bias.buf, shift.buf, out.buf, h, width, cin, cout, mode, parity, leaky, row0, row1,
                             (const uint8_t *)w.buf + plain};
        int failed;
        Py_BEGIN_ALLOW_THREADS
        failed = conv_tiles(&operands);
        Py_END_ALLOW_THREADS
        if (failed) problem = "";
        else goto done;
    }
#endif
    int step = set->pixels;
    /* A 1x1 layer knows no rows: its pixels are one long row, read in place but for the last few. */
    int rows = row1 - row0, border = mode == POINT ? 0 : 1;
    Py_ssize_t pad_width = mode == POINT ? MAX_PIXELS : width + 2 * border + MAX_PIXELS, line = mode == POINT ? (Py_ssize_t)rows * width : width;
    /* A few rows at a time, so that what is copied stays in the cache. */
    int chunk = pad_width * cin > 0 ? (int)(131072 / (pad_width * cin)) : 1;
    if (chunk < 4) chunk = 4;
    if (chunk > rows) chunk = rows > 0 ? rows : 1;
    if (!problem) {
        pad = calloc((size_t)(mode == POINT ? 1 : chunk + 2) * pad_width * cin, 2);
        acc = malloc(sizeof(int32_t) * MAX_PIXELS * blocks * LANES);
        if (!pad || !acc) problem = "";
    }
    if (!problem) {
        Py_BEGIN_ALLOW_THREADS
        const int16_t *src = x.buf, *weights = w.buf;
        size_t block_size = (size_t)num_taps * cin * LANES;
        int out_stride = blocks * LANES;
        for (int r = row0, start = row0; r < (mode == POINT ? row0 + 1 : row1); r++) {
            if (mode != POINT && (r - row0) % chunk == 0) {
                start = r;
                for (int i = 0; i < chunk + 2; i++) {
                    int16_t *to = pad + ((size_t)i * pad_width + border) * cin;
                    int from = start + i - 1;
                    if (from < 0 || from >= h) memset(to, 0, (size_t)width * cin * 2);
                    else memcpy(to, src + (size_t)from * width * cin, (size_t)width * cin * 2);
                }
            }
            int taps[MAX_TAPS][2];
            taps_of(mode, (r + parity) & 1, taps);
            const int16_t *base = mode == POINT ? src + (size_t)row0 * width * cin : pad + ((size_t)(r - start + border) * pad_width + border) * cin;
            for (Py_ssize_t c = 0; c < line; c += step) {
                const int16_t *px[MAX_TAPS];
                for (int t = 0; t < num_taps; t++) px[t] = base + ((ptrdiff_t)taps[t][0] * pad_width + c + taps[t][1]) * cin;
                if (mode == POINT && line - c < step) {
                    memcpy(pad, base + c * cin, (size_t)(line - c) * cin * 2);
                    px[0] = pad;
                }
                int b = 0;
                if (set->micro_two)
                    for (; b + 1 < blocks; b += 2)
                        set->micro_two(px, num_taps, cin / 2, cin, weights + b * block_size, acc + b * LANES, out_stride);
                for (; b < blocks; b++) set->micro(px, num_taps, cin / 2, cin, weights + b * block_size, acc + b * LANES, out_stride);
                int count = line - c < step ? (int)(line - c) : step;
                size_t first = ((size_t)r * width + c) * cout;
                for (int j = 0; j < count; j++)
                    set->epilogue(acc + j * out_stride, bias.buf, shift.buf, leaky, has_add ? (const int16_t *)add.buf + first + (size_t)j * cout : NULL,
                             (int16_t *)out.buf + first + (size_t)j * cout, cout);
            }
        }
        Py_END_ALLOW_THREADS
    }
#if WITH_AMX
done:
#endif
    free(pad);
    free(acc);
    PyBuffer_Release(&x); PyBuffer_Release(&w); PyBuffer_Release(&bias); PyBuffer_Release(&shift); PyBuffer_Release(&out);
    if (has_add) PyBuffer_Release(&add);
    if (problem) {
        if (*problem) PyErr_SetString(PyExc_ValueError, problem);
        else PyErr_NoMemory();
        return NULL;
    }
    Py_RETURN_NONE;
}

/* State values beyond this are cut: sums of a unit's matrix then stay below 2^52 and doubles are exact. */
#define STATE_LIMIT 67108864.0 /* 2^26: 1024.0 in Q16 */
#define MAX_MEAN_SHIFT 14 /* a mean, int16, then stays below 2^29, and its difference to a state in int32 */

/* z2 <- round(z2 * E[s] / 2^20) - t * 2^t_shift, then x <- round(M (z1, z2) / 2^20) - bias; doubles hold whole numbers below 2^53 all the way. */
#define UNIT(NAME, ATTRIBUTE)                                                                                                                  \
    ATTRIBUTE static inline __attribute__((always_inline)) void NAME##_body(const int32_t *restrict z, const int32_t *restrict z2, int step, const int16_t *restrict st, const int32_t *restrict table, double t_factor, \
                               const double *restrict matrix, const double *restrict bias, int32_t *restrict out, Py_ssize_t n, int channels,  \
                               int affine) {                                                                                                   \
        int half = channels / 2;                                                                                                               \
        double v[512], sum[512];                                                                                                               \
        for (Py_ssize_t i = 0; i < n; i++, z += step, z2 += step, st += affine ? channels : half, out += channels) {                           \
            for (int c = 0; c < half; c++) v[c] = z[c];                                                                                        \
            const int16_t *t = affine ? st + half : st;                                                                                        \
            if (affine)                                                                                                                        \
                for (int c = 0; c < half; c++)                                                                                                 \
                    v[half + c] = floor((double)z2[c] * table[(uint16_t)st[c] ^ 0x8000u] * 0x1p-20 + 0.5) - t[c] * t_factor;             \
            else                                                                                                                               \
                for (int c = 0; c < half; c++) v[half + c] = z[half + c] - t[c] * t_factor;                                                    \
            for (int c = 0; c < channels; c++) v[c] = v[c] < -STATE_LIMIT ? -STATE_LIMIT : v[c] > STATE_LIMIT ? STATE_LIMIT : v[c];            \
            for (int o = 0; o < channels; o++) sum[o] = 0;                                                                                     \
            for (int c = 0; c < channels; c++) {                                                                                               \
                double value = v[c];                                                                                                           \
                const double *row = matrix + (size_t)c * channels;                                                                             \
                for (int o = 0; o < channels; o++) sum[o] += row[o] * value;                                                                   \
            }                                                                                                                                  \
            for (int o = 0; o < channels; o++) {                                                                                               \
                double x = floor(sum[o] * 0x1p-20 + 0.5) - bias[o];                                                                            \
                out[o] = (int32_t)(x < -STATE_LIMIT ? -STATE_LIMIT : x > STATE_LIMIT ? STATE_LIMIT : x);                                       \
            }                                                                                                                                  \
        }                                                                                                                                      \
    }                                                                                                                                          \
    /* Known widths keep their sums in registers. */                                                                                           \
    ATTRIBUTE static void NAME(const int32_t *z, const int32_t *z2, int step, const int16_t *st, const int32_t *table, double t_factor, const double *matrix, \
                               const double *bias, int32_t *out, Py_ssize_t n, int channels, int affine) {                                     \
        if (channels == 12 && affine) NAME##_body(z, z2, step, st, table, t_factor, matrix, bias, out, n, 12, 1);                                        \
        else if (channels == 24 && affine) NAME##_body(z, z2, step, st, table, t_factor, matrix, bias, out, n, 24, 1);                                   \
        else if (channels == 48 && affine) NAME##_body(z, z2, step, st, table, t_factor, matrix, bias, out, n, 48, 1);                                   \
        else if (channels == 96 && affine) NAME##_body(z, z2, step, st, table, t_factor, matrix, bias, out, n, 96, 1);                                   \
        else NAME##_body(z, z2, step, st, table, t_factor, matrix, bias, out, n, channels, affine);                                                      \
    }
UNIT(unit_plain, )
#if WITH_X86
UNIT(unit_avx2, __attribute__((target("avx2,fma"))))

#define UNIT_PIXELS 4

AVX512_TARGET static inline __m512d cut_state(__m512d v) { return _mm512_max_pd(_mm512_set1_pd(-STATE_LIMIT), _mm512_min_pd(_mm512_set1_pd(STATE_LIMIT), v)); }

AVX512_TARGET static inline __m512d floor_pd(__m512d v) { return _mm512_roundscale_pd(v, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC); }

/* v / 2^20, rounded: a power of two, so that the product loses nothing and the sum rounds once, as without FMA. */
AVX512_TARGET static inline __m512d rounded(__m512d v) { return floor_pd(_mm512_fmadd_pd(v, _mm512_set1_pd(0x1p-20), _mm512_set1_pd(0.5))); }

/* Sums 16 or fewer of the matrix's columns over the values of four pixels, so that a row of it is loaded once for all of them. `sum` comes with what
 * they begin with. */
AVX512_TARGET static inline void products_avx512(double (*v)[512], const double *row, int channels, __mmask8 mask0, __mmask8 mask1, __m512d (*sum)[2]) {
    for (int c = 0; c < channels; c++, row += channels) {
        __m512d row0 = _mm512_maskz_loadu_pd(mask0, row), row1 = _mm512_maskz_loadu_pd(mask1, row + 8);
#pragma GCC unroll 4
        for (int p = 0; p < UNIT_PIXELS; p++) {
            __m512d value = _mm512_set1_pd(v[p][c]);
            sum[p][0] = _mm512_fmadd_pd(row0, value, sum[p][0]);
            sum[p][1] = _mm512_fmadd_pd(row1, value, sum[p][1]);
        }
    }
}

AVX512_TARGET static inline __mmask8 first_eight(int n) { return n >= 8 ? 0xff : n > 0 ? (__mmask8)((1u << n) - 1) : 0; }

AVX512_TARGET static void unit_avx512(const int32_t *z, const int32_t *z2, int step, const int16_t *st, const int32_t *table, double t_factor,
                                      const double *matrix, const double *bias, int32_t *out, Py_ssize_t n, int channels, int affine) {
    double v[UNIT_PIXELS][512] __attribute__((aligned(64))) = {{0}};
    int half = channels / 2;
    const __m512d factor = _mm512_set1_pd(t_factor);
    for (Py_ssize_t i = 0; i < n; i += UNIT_PIXELS) {
        int count = n - i < UNIT_PIXELS ? (int)(n - i) : UNIT_PIXELS;
        for (int p = 0; p < count; p++) {
            const int32_t *from = z + (i + p) * step, *from2 = z2 + (i + p) * step;
            const int16_t *s = st + (i + p) * (affine ? channels : half), *t = affine ? s + half : s;
            for (int c = 0; c < half; c += 8) {
                __mmask8 mask = first_eight(half - c);
                _mm512_mask_storeu_pd(v[p] + c, mask, cut_state(_mm512_cvtepi32_pd(_mm256_maskz_loadu_epi32(mask, from + c))));
                __m512d second = _mm512_cvtepi32_pd(_mm256_maskz_loadu_epi32(mask, from2 + c));
                if (affine) {
                    __m256i index = _mm256_add_epi32(_mm256_cvtepi16_epi32(_mm_maskz_loadu_epi16(mask, s + c)), _mm256_set1_epi32(32768));
                    __m256i scale = _mm256_mmask_i32gather_epi32(_mm256_setzero_si256(), mask, index, table, 4);
                    second = rounded(_mm512_mul_pd(second, _mm512_cvtepi32_pd(scale)));
                }
                __m512d shift = _mm512_mul_pd(_mm512_cvtepi32_pd(_mm256_cvtepi16_epi32(_mm_maskz_loadu_epi16(mask, t + c))), factor);
                _mm512_mask_storeu_pd(v[p] + half + c, mask, cut_state(_mm512_sub_pd(second, shift)));
            }
        }
        for (int o = 0; o < channels; o += 16) {
            __mmask8 mask0 = first_eight(channels - o), mask1 = first_eight(channels - o - 8);
            __m512d sum[UNIT_PIXELS][2];
            for (int p = 0; p < UNIT_PIXELS; p++) sum[p][0] = sum[p][1] = _mm512_setzero_pd();
            products_avx512(v, matrix + o, channels, mask0, mask1, sum);
            __m512d bias0 = _mm512_maskz_loadu_pd(mask0, bias + o), bias1 = _mm512_maskz_loadu_pd(mask1, bias + o + 8);
#pragma GCC unroll 4
            for (int p = 0; p < UNIT_PIXELS; p++) {
                if (p >= count) break;
                int32_t *to = out + (i + p) * channels + o;
                _mm256_mask_storeu_epi32(to, mask0, _mm512_cvttpd_epi32(cut_state(_mm512_sub_pd(rounded(sum[p][0]), bias0))));
                _mm256_mask_storeu_epi32(to + 8, mask1, _mm512_cvttpd_epi32(cut_state(_mm512_sub_pd(rounded(sum[p][1]), bias1))));
            }
        }
    }
}
#endif

/* The second half of the state may be an array of its own. */
static PyObject *unit(PyObject *self, PyObject *args) {
    Py_buffer z, st, table, matrix, bias, out, z2;
    int channels, affine, isa;
    double t_factor;
    PyObject *second = Py_None;
    (void)self;
    if (!PyArg_ParseTuple(args, "y*y*y*dy*y*w*iii|O", &z, &st, &table, &t_factor, &matrix, &bias, &out, &channels, &affine, &isa, &second)) return NULL;
    int apart = second != Py_None, good = 1;
    if (apart && PyObject_GetBuffer(second, &z2, PyBUF_SIMPLE)) apart = good = 0;
    Py_ssize_t n = channels > 0 ? out.len / 4 / channels : 0;
    good = good && channels >= 2 && channels % 2 == 0 && channels <= 512 && out.len == n * channels * 4 && (apart ? z2.len + z.len : z.len) == out.len &&
           (!apart || z.len == z2.len) && st.len == n * (affine ? channels : channels / 2) * 2 && table.len == 65536 * 4 &&
           bias.len == (Py_ssize_t)channels * 8 && matrix.len == (Py_ssize_t)channels * channels * 8;
    if (good) {
        Py_BEGIN_ALLOW_THREADS
        const int32_t *first = z.buf, *other = apart ? z2.buf : first + channels / 2;
        isa_of(isa)->unit(first, other, apart ? channels / 2 : channels, st.buf, table.buf, t_factor, matrix.buf, bias.buf, out.buf, n, channels, affine);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&z); PyBuffer_Release(&st); PyBuffer_Release(&table); PyBuffer_Release(&matrix); PyBuffer_Release(&bias); PyBuffer_Release(&out);
    if (apart) PyBuffer_Release(&z2);
    if (!good) { PyErr_SetString(PyExc_ValueError, "sizes of the unit's operands contradict each other"); return NULL; }
    Py_RETURN_NONE;
}

/* out = clamp16((x + 2^(s-1)) >> s) per channel; s = 0 leaves x as it is. Pixels lie `step` and `out_step` values apart. */
static INLINED void narrow_plain(const int32_t *in, Py_ssize_t step, const int32_t *shift, int16_t *out, Py_ssize_t out_step, Py_ssize_t n, int channels) {
    for (Py_ssize_t i = 0; i < n; i++, in += step, out += out_step)
        for (int c = 0; c < channels; c++) out[c] = (int16_t)clamp16((in[c] + ((1 << shift[c]) >> 1)) >> shift[c]);
}

#if WITH_X86
AVX512_TARGET static inline __m256i narrowed_avx512(__m512i v, __m512i shift) {
    __m512i half = _mm512_srli_epi32(_mm512_sllv_epi32(_mm512_set1_epi32(1), shift), 1);
    return _mm512_cvtsepi32_epi16(_mm512_srav_epi32(_mm512_add_epi32(v, half), shift));
}

AVX512_TARGET static void narrow_avx512(const int32_t *in, Py_ssize_t step, const int32_t *shift, int16_t *out, Py_ssize_t out_step, Py_ssize_t n,
                                        int channels) {
    enum { MOST = 256 };
    Py_ssize_t i = 0;
    if (step == channels && out_step == channels && channels <= MOST) {
        /* Channels go by in vectors of 16, whatever their number: of C channels 16 pixels are C vectors. */
        int32_t shifts[16 * MOST];
        for (int k = 0; k < 16 * channels; k++) shifts[k] = shift[k % channels];
        for (; i + 16 <= n; i += 16, in += 16 * channels, out += 16 * channels)
            for (int c = 0; c < 16 * channels; c += 16)
                _mm256_storeu_si256((__m256i *)(out + c), narrowed_avx512(_mm512_loadu_si512(in + c), _mm512_loadu_si512(shifts + c)));
    }
    for (int c = 0; c < channels; c += 16) {
        const __mmask16 mask = first_channels(channels - c);
        const __m512i by = _mm512_maskz_loadu_epi32(mask, shift + c);
        for (Py_ssize_t k = 0; k < n - i; k++)
            _mm256_mask_storeu_epi16(out + k * out_step + c, mask, narrowed_avx512(_mm512_maskz_loadu_epi32(mask, in + k * step + c), by));
    }
}
#endif

/* Of each pixel `channels` values, the first of them `from` and `to` from the array's start, to a pixel of another array. */
static PyObject *narrow(PyObject *self, PyObject *args) {
    Py_buffer x, shift, out;
    int channels, isa, from = 0, step = 0, to = 0, out_step = 0;
    (void)self;
    if (!PyArg_ParseTuple(args, "y*y*w*ii|iiii", &x, &shift, &out, &channels, &isa, &from, &step, &to, &out_step)) return NULL;
    if (!step && !out_step) step = out_step = channels;
    Py_ssize_t n = step > 0 ? x.len / 4 / step : 0;
    int good = channels > 0 && channels <= 8192 && from >= 0 && to >= 0 && step <= 65536 && out_step <= 65536 && from <= step - channels &&
               to <= out_step - channels && x.len == n * step * 4 && out.len == n * out_step * 2 && shift.len == (Py_ssize_t)channels * 4;
    if (good) {
        Py_BEGIN_ALLOW_THREADS
        isa_of(isa)->narrow((const int32_t *)x.buf + from, step, shift.buf, (int16_t *)out.buf + to, out_step, n, channels);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&x); PyBuffer_Release(&shift); PyBuffer_Release(&out);
    if (!good) { PyErr_SetString(PyExc_ValueError, "sizes of the operands contradict each other"); return NULL; }
    Py_RETURN_NONE;
}

/* What is beside one another in a picture's state `[2h, 2w, 3]`, two pixels of two rows, to channels of one, `4c + 2i + j` for row i and column j, and
 * narrowed. */
#define COLOURS 3
static INLINED void gather_plain(const int32_t *state, const int32_t *shift, int16_t *out, Py_ssize_t h, Py_ssize_t w) {
    for (Py_ssize_t r = 0; r < h; r++, state += 2 * w * 2 * COLOURS)
        for (Py_ssize_t x = 0; x < w; x++, out += 4 * COLOURS)
            for (int o = 0; o < 4 * COLOURS; o++) {
                int32_t v = state[(o / 2 % 2 * 2 * w + 2 * x + o % 2) * COLOURS + o / 4];
                out[o] = (int16_t)clamp16((v + ((1 << shift[o]) >> 1)) >> shift[o]);
            }
}

/* Pixels of state and `correction * 2^shift`, whose channels are those of `gather`. */
static INLINED void corrected_plain(const int32_t *state, const int16_t *correction, int shift, uint8_t *out, Py_ssize_t h, Py_ssize_t w) {
    for (Py_ssize_t r = 0; r < h; r++, state += 2 * w * 2 * COLOURS, out += 2 * w * 2 * COLOURS)
        for (Py_ssize_t x = 0; x < w; x++, correction += 4 * COLOURS)
            for (int o = 0; o < 4 * COLOURS; o++) {
                Py_ssize_t at = (o / 2 % 2 * 2 * w + 2 * x + o % 2) * COLOURS + o / 4;
                int32_t v = state[at] + correction[o] * (1 << shift);
                out[at] = (uint8_t)(((v < 0 ? 0 : v > 65536 ? 65536 : v) * 255 + 32768) >> 16);
            }
}

#if WITH_X86
/* Two pixels of the upper row in the lower half of a vector, two of the lower row in its upper half: where `gather` and `corrected` find them. */
static const int32_t BESIDE[16] = {0, 3, 8, 11, 1, 4, 9, 12, 2, 5, 10, 13, 6, 6, 6, 6}, APART[16] = {0, 4, 8, 1, 5, 9, 12, 12, 2, 6, 10, 3, 7, 11, 12, 12};

AVX512_TARGET static inline __m512i two_rows(const int32_t *upper, const int32_t *lower) {
    __m256i a = _mm256_maskz_loadu_epi32(0x3f, upper), b = _mm256_maskz_loadu_epi32(0x3f, lower);
    return _mm512_inserti64x4(_mm512_castsi256_si512(a), b, 1);
}

AVX512_TARGET static void gather_avx512(const int32_t *state, const int32_t *shift, int16_t *out, Py_ssize_t h, Py_ssize_t w) {
    const __m512i beside = _mm512_loadu_si512(BESIDE), by = _mm512_maskz_loadu_epi32(0xfff, shift);
    for (Py_ssize_t r = 0; r < h; r++, state += 2 * w * 2 * COLOURS)
        for (Py_ssize_t x = 0; x < w; x++, out += 4 * COLOURS) {
            const int32_t *from = state + 2 * x * COLOURS;
            __m512i v = _mm512_permutexvar_epi32(beside, two_rows(from, from + 2 * w * COLOURS));
            _mm256_mask_storeu_epi16(out, 0xfff, narrowed_avx512(v, by));
        }
}

AVX512_TARGET static void corrected_avx512(const int32_t *state, const int16_t *correction, int shift, uint8_t *out, Py_ssize_t h, Py_ssize_t w) {
    const __m512i apart = _mm512_loadu_si512(APART), most = _mm512_set1_epi32(65536), zero = _mm512_setzero_si512();
    const __m128i by = _mm_cvtsi32_si128(shift);
    for (Py_ssize_t r = 0; r < h; r++, state += 2 * w * 2 * COLOURS, out += 2 * w * 2 * COLOURS)
        for (Py_ssize_t x = 0; x < w; x++, correction += 4 * COLOURS) {
            Py_ssize_t at = 2 * x * COLOURS;
            __m512i add = _mm512_cvtepi16_epi32(_mm256_maskz_loadu_epi16(0xfff, correction));
            __m512i v = _mm512_add_epi32(two_rows(state + at, state + at + 2 * w * COLOURS), _mm512_sll_epi32(_mm512_permutexvar_epi32(apart, add), by));
            v = _mm512_max_epi32(zero, _mm512_min_epi32(most, v));
            v = _mm512_srli_epi32(_mm512_add_epi32(_mm512_sub_epi32(_mm512_slli_epi32(v, 8), v), _mm512_set1_epi32(32768)), 16);
            __m128i bytes = _mm512_cvtepi32_epi8(v);
            _mm_mask_storeu_epi8(out + at, 0x3f, bytes);
            _mm_mask_storeu_epi8(out + at + 2 * w * COLOURS, 0x3f, _mm_bsrli_si128(bytes, 8));
        }
}
#endif

/* Whether `state` is of a picture `[2h, 2w, 3]`. */
static int pictured(Py_ssize_t state_bytes, int h, int w) {
    return h > 0 && w > 0 && h <= MAX_SIDE && w <= MAX_SIDE && state_bytes == (Py_ssize_t)h * w * 4 * COLOURS * 4;
}

static PyObject *gather(PyObject *self, PyObject *args) {
    Py_buffer state, shift, out;
    int h, w, isa;
    (void)self;
    if (!PyArg_ParseTuple(args, "y*y*w*iii", &state, &shift, &out, &h, &w, &isa)) return NULL;
    int good = pictured(state.len, h, w) && out.len * 2 == state.len && shift.len == 4 * COLOURS * 4;
    if (good) {
        Py_BEGIN_ALLOW_THREADS
        isa_of(isa)->gather(state.buf, shift.buf, out.buf, h, w);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&state); PyBuffer_Release(&shift); PyBuffer_Release(&out);
    if (!good) { PyErr_SetString(PyExc_ValueError, "sizes of the operands contradict each other"); return NULL; }
    Py_RETURN_NONE;
}

static PyObject *corrected(PyObject *self, PyObject *args) {
    Py_buffer state, correction, out;
    int h, w, shift, isa;
    (void)self;
    if (!PyArg_ParseTuple(args, "y*y*w*iiii", &state, &correction, &out, &h, &w, &shift, &isa)) return NULL;
    int good = pictured(state.len, h, w) && out.len * 4 == state.len && correction.len * 2 == state.len && shift >= 0 && shift <= MAX_MEAN_SHIFT;
    if (good) {
        Py_BEGIN_ALLOW_THREADS
        isa_of(isa)->corrected(state.buf, correction.buf, shift, out.buf, h, w);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&state); PyBuffer_Release(&correction); PyBuffer_Release(&out);
    if (!good) { PyErr_SetString(PyExc_ValueError, "sizes of the operands contradict each other"); return NULL; }
    Py_RETURN_NONE;
}

/* `rows` rows of `count` pieces of `bytes` bytes from one array to another, each with its own way from row to row and from piece to piece. */
static PyObject *place(PyObject *self, PyObject *args) {
    Py_buffer source, target;
    Py_ssize_t from, from_row, from_step, to, to_row, to_step, rows, count, bytes;
    const Py_ssize_t most = (Py_ssize_t)1 << 40;
    (void)self;
    if (!PyArg_ParseTuple(args, "y*nnnw*nnnnnn", &source, &from, &from_row, &from_step, &target, &to, &to_row, &to_step, &rows, &count, &bytes)) return NULL;
    int good = rows > 0 && count > 0 && bytes > 0 && rows <= MAX_SIDE && count <= MAX_SIDE && from >= 0 && from_row >= 0 && from_step >= 0 && to >= 0 &&
               to_row >= 0 && to_step >= 0 && from <= most && from_row <= most && from_step <= most && to <= most && to_row <= most && to_step <= most &&
               bytes <= most && from + (rows - 1) * from_row + (count - 1) * from_step + bytes <= source.len &&
               to + (rows - 1) * to_row + (count - 1) * to_step + bytes <= target.len;
    if (good) {
        Py_BEGIN_ALLOW_THREADS
        const char *a = (const char *)source.buf + from;
        char *b = (char *)target.buf + to;
        for (Py_ssize_t r = 0; r < rows; r++, a += from_row, b += to_row) {
            const char *x = a;
            char *y = b;
/* Pieces of a known length need no call. */
#define PIECES(N) case N: for (Py_ssize_t i = 0; i < count; i++, x += from_step, y += to_step) memcpy(y, x, N); break;
            switch (bytes) {
                PIECES(12) PIECES(24) PIECES(32) PIECES(48) PIECES(64) PIECES(96) PIECES(128) PIECES(192)
                default: for (Py_ssize_t i = 0; i < count; i++, x += from_step, y += to_step) memcpy(y, x, (size_t)bytes);
            }
        }
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&source); PyBuffer_Release(&target);
    if (!good) { PyErr_SetString(PyExc_ValueError, "what is to be copied does not lie within both arrays"); return NULL; }
    Py_RETURN_NONE;
}

/* Encoder only, so that nothing depends on its rounding: z = M x + bias. */
#define MIX(NAME, ATTRIBUTE)                                                                                                                   \
    ATTRIBUTE static inline __attribute__((always_inline)) void NAME##_body(const int32_t *restrict x, const double *restrict matrix, const double *restrict bias, int32_t *restrict out,   \
                               Py_ssize_t n, int channels) {                                                                                   \
        double sum[512];                                                                                                                       \
        for (Py_ssize_t i = 0; i < n; i++, x += channels, out += channels) {                                                                   \
            for (int o = 0; o < channels; o++) sum[o] = bias[o];                                                                               \
            for (int c = 0; c < channels; c++) {                                                                                               \
                double value = x[c];                                                                                                           \
                const double *row = matrix + (size_t)c * channels;                                                                             \
                for (int o = 0; o < channels; o++) sum[o] += row[o] * value;                                                                   \
            }                                                                                                                                  \
            for (int o = 0; o < channels; o++) {                                                                                               \
                double v = floor(sum[o] + 0.5);                                                                                                \
                out[o] = (int32_t)(v < -STATE_LIMIT ? -STATE_LIMIT : v > STATE_LIMIT ? STATE_LIMIT : v);                                       \
            }                                                                                                                                  \
        }                                                                                                                                      \
    }                                                                                                                                          \
    ATTRIBUTE static void NAME(const int32_t *x, const double *matrix, const double *bias, int32_t *out, Py_ssize_t n, int channels) {         \
        if (channels == 12) NAME##_body(x, matrix, bias, out, n, 12);                                                                          \
        else if (channels == 24) NAME##_body(x, matrix, bias, out, n, 24);                                                                     \
        else if (channels == 48) NAME##_body(x, matrix, bias, out, n, 48);                                                                     \
        else if (channels == 96) NAME##_body(x, matrix, bias, out, n, 96);                                                                     \
        else NAME##_body(x, matrix, bias, out, n, channels);                                                                                   \
    }
MIX(mix_plain, )
#if WITH_X86
MIX(mix_avx2, __attribute__((target("avx2,fma"))))

AVX512_TARGET static void mix_avx512(const int32_t *x, const double *matrix, const double *bias, int32_t *out, Py_ssize_t n, int channels) {
    double v[UNIT_PIXELS][512] __attribute__((aligned(64))) = {{0}};
    for (Py_ssize_t i = 0; i < n; i += UNIT_PIXELS) {
        int count = n - i < UNIT_PIXELS ? (int)(n - i) : UNIT_PIXELS;
        for (int p = 0; p < count; p++)
            for (int c = 0; c < channels; c += 8) {
                __mmask8 mask = first_eight(channels - c);
                _mm512_mask_storeu_pd(v[p] + c, mask, _mm512_cvtepi32_pd(_mm256_maskz_loadu_epi32(mask, x + (i + p) * channels + c)));
            }
        for (int o = 0; o < channels; o += 16) {
            __mmask8 mask0 = first_eight(channels - o), mask1 = first_eight(channels - o - 8);
            __m512d sum[UNIT_PIXELS][2], bias0 = _mm512_maskz_loadu_pd(mask0, bias + o), bias1 = _mm512_maskz_loadu_pd(mask1, bias + o + 8);
            for (int p = 0; p < UNIT_PIXELS; p++) { sum[p][0] = bias0; sum[p][1] = bias1; }
            products_avx512(v, matrix + o, channels, mask0, mask1, sum);
            for (int p = 0; p < count; p++) {
                int32_t *to = out + (i + p) * channels + o;
                for (int k = 0; k < 2; k++)
                    _mm256_mask_storeu_epi32(to + 8 * k, k ? mask1 : mask0, _mm512_cvttpd_epi32(cut_state(floor_pd(_mm512_add_pd(sum[p][k], _mm512_set1_pd(0.5))))));
            }
        }
    }
}
#endif

/* What layers can at most reach: sums of products with operands in registers. An empty `asm` changes nothing, but the compiler cannot know that:
 * it would else leave out products that it knows. */
#define CHANGED(kind, v) __asm__ volatile("" : "+" kind(v))

/* Which registers there are is the compiler's business: the layers' own loop, out of the first cache. */
static int ceiling_scalar(long rounds) {
    enum { INPUTS = 64 };
    int16_t x[INPUTS] = {0}, w[INPUTS * LANES] = {0};
    int32_t out[LANES];
    const int16_t *from = x;
    for (long i = 0; i < rounds; i++) {
        CHANGED("m", x);
        micro_scalar(&from, 1, INPUTS / 2, INPUTS, w, out, LANES);
        CHANGED("m", out);
    }
    return INPUTS * LANES;
}

#if WITH_X86
__attribute__((target("sse4.1"))) static int ceiling_sse41(long rounds) {
    __m128i acc[8], x = _mm_setzero_si128(), w = x;
    CHANGED("x", w);
#pragma GCC unroll 8
    for (int j = 0; j < 8; j++) acc[j] = w;
    for (long i = 0; i < rounds; i++)
#pragma GCC unroll 8
        for (int j = 0; j < 8; j++) { CHANGED("x", x); acc[j] = _mm_add_epi32(acc[j], _mm_madd_epi16(x, w)); }
#pragma GCC unroll 8
    for (int j = 0; j < 8; j++) CHANGED("x", acc[j]);
    return 8 * 8;
}

__attribute__((target("avx2"))) static int ceiling_avx2(long rounds) {
    __m256i acc[8], x = _mm256_setzero_si256(), w = x;
    CHANGED("x", w);
#pragma GCC unroll 8
    for (int j = 0; j < 8; j++) acc[j] = w;
    for (long i = 0; i < rounds; i++)
#pragma GCC unroll 8
        for (int j = 0; j < 8; j++) { CHANGED("x", x); acc[j] = _mm256_add_epi32(acc[j], _mm256_madd_epi16(x, w)); }
#pragma GCC unroll 8
    for (int j = 0; j < 8; j++) CHANGED("x", acc[j]);
    return 8 * 16;
}

__attribute__((target("avx512f,avx512bw,avx512vl,avx512vnni"))) static int ceiling_avx512(long rounds) {
    __m512i acc[24], w = _mm512_setzero_si512();
#pragma GCC unroll 24
    for (int j = 0; j < 24; j++) { acc[j] = w; CHANGED("v", acc[j]); }
    for (long i = 0; i < rounds; i++)
#pragma GCC unroll 24
        for (int j = 0; j < 24; j++) acc[j] = _mm512_dpwssd_epi32(acc[j], w, w);
#pragma GCC unroll 24
    for (int j = 0; j < 24; j++) CHANGED("v", acc[j]);
    return 24 * 32;
}
#endif

#if WITH_AMX
/* All four products of limbs, of noise: a processor that multiplies zeros takes less current and goes faster than it ever can with numbers. */
AMX_TARGET static int ceiling_tiles(long rounds) {
    uint8_t noise[TILE];
    uint32_t seed = 1;
    for (int i = 0; i < TILE; i++) { seed = seed * 1664525 + 1013904223; noise[i] = (uint8_t)(seed >> 24); }
    _tile_loadconfig(&TILES);
    _tile_loadd(4, noise, TILE_BYTES);
    _tile_loadd(5, noise, TILE_BYTES);
    _tile_loadd(6, noise, TILE_BYTES);
    _tile_loadd(7, noise, TILE_BYTES);
    for (long i = 0; i < rounds; i++) {
        _tile_dpbuud(3, 4, 6);
        _tile_dpbsud(1, 5, 6);
        _tile_dpbusd(2, 4, 7);
        _tile_dpbssd(0, 5, 7);
    }
    _tile_release();
    return TILE_PIXELS * TILE_BYTES * LANES;
}
#endif

#if WITH_NEON
static int ceiling_neon(long rounds) {
    int32x4_t acc[16];
    int16x8_t x = vdupq_n_s16(0), w = x;
    CHANGED("w", x);
    CHANGED("w", w);
#pragma GCC unroll 16
    for (int j = 0; j < 16; j++) { acc[j] = vdupq_n_s32(0); CHANGED("w", acc[j]); }
    for (long i = 0; i < rounds; i++)
#pragma GCC unroll 16
        for (int j = 0; j < 16; j++) acc[j] = j % 2 ? vmlal_high_lane_s16(acc[j], w, vget_low_s16(x), 0) : vmlal_lane_s16(acc[j], vget_low_s16(w), vget_low_s16(x), 0);
#pragma GCC unroll 16
    for (int j = 0; j < 16; j++) CHANGED("w", acc[j]);
    return 16 * 4;
}
#endif

/* Encoder only, in place: z2 <- (z2 + t * 2^t_shift) * 2^20 / E[s]. */
static INLINED void couple_plain(int32_t *to, const int16_t *from, const float *f, double t_factor, Py_ssize_t n, int channels, int affine) {
    int half = channels / 2;
    for (Py_ssize_t i = 0; i < n; i++, to += channels, from += affine ? channels : half)
        for (int c = 0; c < half; c++) {
            double v = to[half + c] + t_factor * from[affine ? half + c : c];
            if (affine) v = floor(v * f[(uint16_t)from[c] ^ 0x8000u] + 0.5);
            to[half + c] = (int32_t)(v < -STATE_LIMIT ? -STATE_LIMIT : v > STATE_LIMIT ? STATE_LIMIT : v);
        }
}

#if WITH_X86
AVX512_TARGET static void couple_avx512(int32_t *to, const int16_t *from, const float *f, double t_factor, Py_ssize_t n, int channels, int affine) {
    int half = channels / 2;
    const __m512d factor = _mm512_set1_pd(t_factor);
    for (Py_ssize_t i = 0; i < n; i++, to += channels, from += affine ? channels : half)
        for (int c = 0; c < half; c += 8) {
            __mmask8 mask = first_eight(half - c);
            __m512d t = _mm512_cvtepi32_pd(_mm256_cvtepi16_epi32(_mm_maskz_loadu_epi16(mask, from + (affine ? half : 0) + c)));
            __m512d v = _mm512_fmadd_pd(t, factor, _mm512_cvtepi32_pd(_mm256_maskz_loadu_epi32(mask, to + half + c))); /* which is exact */
            if (affine) {
                __m256i index = _mm256_add_epi32(_mm256_cvtepi16_epi32(_mm_maskz_loadu_epi16(mask, from + c)), _mm256_set1_epi32(32768));
                __m512d by = _mm512_cvtps_pd(_mm256_mmask_i32gather_ps(_mm256_setzero_ps(), mask, index, f, 4));
                /* Rounded as without FMA, so that encoders agree: of this form of the product the compiler makes none. */
                v = floor_pd(_mm512_add_pd(_mm512_mul_round_pd(v, by, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC), _mm512_set1_pd(0.5)));
            }
            _mm256_mask_storeu_epi32(to + half + c, mask, _mm512_cvttpd_epi32(cut_state(v)));
        }
}
#endif

static PyObject *couple(PyObject *self, PyObject *args) {
    Py_buffer z, st, reciprocal;
    int channels, affine, isa = -1;
    double t_factor;
    (void)self;
    if (!PyArg_ParseTuple(args, "w*y*y*dii|i", &z, &st, &reciprocal, &t_factor, &channels, &affine, &isa)) return NULL;
    Py_ssize_t n = channels > 0 ? z.len / 4 / channels : 0;
    int half = channels / 2, good = channels >= 2 && channels <= 8192 && z.len == n * channels * 4 && st.len == n * (affine ? channels : half) * 2 &&
                                    reciprocal.len == 65536 * 4;
    if (good) {
        Py_BEGIN_ALLOW_THREADS
        isa_of(isa)->couple(z.buf, st.buf, reciprocal.buf, t_factor, n, channels, affine);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&z); PyBuffer_Release(&st); PyBuffer_Release(&reciprocal);
    if (!good) { PyErr_SetString(PyExc_ValueError, "sizes of the operands contradict each other"); return NULL; }
    Py_RETURN_NONE;
}

/* Table of each symbol: clamp(floor((log2[S] + log_gain[c] - first) / step), 0, tables - 1); 0 where S <= 0. */
static void levels_plain(const int16_t *in, const int32_t *l, const int32_t *g, uint8_t *to, Py_ssize_t n, int channels, int first, int step, int tables) {
    int32_t top = tables * step - 1;
    /* In place of a division: 2^40 / step is too large by less than 1, the quotient by less than 2^-17, and it lacks 1 / step to the next. */
    uint64_t per_step = (((uint64_t)1 << 40) + (uint64_t)step - 1) / (uint64_t)step;
    for (Py_ssize_t i = 0; i < n; i++, in += 2 * channels, to += channels)
        for (int c = 0; c < channels; c++) {
            int32_t v = in[c] > 0 ? l[in[c]] + g[c] - first : 0;
            to[c] = (uint8_t)((uint64_t)(v < 0 ? 0 : v > top ? top : v) * per_step >> 40);
        }
}

#if WITH_X86
AVX512_TARGET static void levels_avx512(const int16_t *in, const int32_t *l, const int32_t *g, uint8_t *to, Py_ssize_t n, int channels, int first,
                                        int step, int tables) {
    const __m512i top = _mm512_set1_epi32(tables * step - 1), zero = _mm512_setzero_si512();
    const __m512d half = _mm512_set1_pd(0.5), per_step = _mm512_set1_pd(1.0 / step);
    for (int c = 0; c < channels; c += LANES) {
        __mmask16 mask = first_channels(channels - c);
        const __m512i gain = _mm512_sub_epi32(_mm512_maskz_loadu_epi32(mask, g + c), _mm512_set1_epi32(first));
        for (Py_ssize_t i = 0; i < n; i++) {
            __m512i scale = _mm512_cvtepi16_epi32(_mm256_maskz_loadu_epi16(mask, in + i * 2 * channels + c));
            __mmask16 some = _mm512_cmpgt_epi32_mask(scale, zero);
            __m512i v = _mm512_maskz_add_epi32(some, _mm512_mask_i32gather_epi32(zero, some, scale, l, 4), gain);
            v = _mm512_max_epi32(zero, _mm512_min_epi32(top, v));
            /* Half a numerator above it the quotient is further from a whole number than doubles err. */
            __m256i low = _mm512_cvttpd_epi32(_mm512_mul_pd(_mm512_add_pd(_mm512_cvtepi32_pd(_mm512_castsi512_si256(v)), half), per_step));
            __m256i high = _mm512_cvttpd_epi32(_mm512_mul_pd(_mm512_add_pd(_mm512_cvtepi32_pd(_mm512_extracti64x4_epi64(v, 1)), half), per_step));
            _mm_mask_storeu_epi8(to + i * channels + c, mask, _mm512_cvtepi32_epi8(_mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1)));
        }
    }
}
#endif

static PyObject *levels(PyObject *self, PyObject *args) {
    Py_buffer parameters, log2, log_gain, out;
    int channels, first, step, tables, isa = -1;
    (void)self;
    if (!PyArg_ParseTuple(args, "y*y*y*w*iiii|i", &parameters, &log2, &log_gain, &out, &channels, &first, &step, &tables, &isa)) return NULL;
    Py_ssize_t n = channels > 0 ? out.len / channels : 0;
    int good = channels > 0 && channels <= 8192 && out.len == n * channels && parameters.len == n * channels * 4 && log2.len == 32768 * 4 &&
               log_gain.len == (Py_ssize_t)channels * 4 && step > 0 && step <= 65536 && tables > 0 && tables <= 256;
    if (good) {
        Py_BEGIN_ALLOW_THREADS
        isa_of(isa)->levels(parameters.buf, log2.buf, log_gain.buf, out.buf, n, channels, first, step, tables);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&parameters); PyBuffer_Release(&log2); PyBuffer_Release(&log_gain); PyBuffer_Release(&out);
    if (!good) { PyErr_SetString(PyExc_ValueError, "sizes of the operands contradict each other"); return NULL; }
    Py_RETURN_NONE;
}

/* y_hat = clamp(mean * 2^mean_shift + ((symbol * inv_gain + 2^7) >> 8)), Q16; symbols at most 2^24 in size. */
static INLINED void dequantise_plain(const int32_t *s, const int16_t *m, const int32_t *g, int32_t *to, Py_ssize_t n, int channels, int mean_shift) {
    for (Py_ssize_t i = 0; i < n; i++, s += channels, m += 2 * channels, to += channels)
        for (int c = 0; c < channels; c++) {
            int64_t v = m[channels + c] * ((int64_t)1 << mean_shift) + (((int64_t)s[c] * g[c] + 128) >> 8);
            to[c] = (int32_t)(v < -67108864 ? -67108864 : v > 67108864 ? 67108864 : v);
        }
}

#if WITH_X86
AVX512_TARGET static void dequantise_avx512(const int32_t *s, const int16_t *m, const int32_t *g, int32_t *to, Py_ssize_t n, int channels, int mean_shift) {
    const __m512i least = _mm512_set1_epi64(-67108864), most = _mm512_set1_epi64(67108864), half = _mm512_set1_epi64(128);
    const __m128i up = _mm_cvtsi32_si128(mean_shift);
    for (int c = 0; c < channels; c += 8) {
        __mmask8 mask = first_eight(channels - c);
        const __m512i gain = _mm512_cvtepi32_epi64(_mm256_maskz_loadu_epi32(mask, g + c));
        for (Py_ssize_t i = 0; i < n; i++) {
            __m512i symbol = _mm512_cvtepi32_epi64(_mm256_maskz_loadu_epi32(mask, s + i * channels + c));
            __m512i mean = _mm512_cvtepi16_epi64(_mm_maskz_loadu_epi16(mask, m + (2 * i + 1) * channels + c));
            __m512i v = _mm512_srai_epi64(_mm512_add_epi64(_mm512_mul_epi32(symbol, gain), half), 8);
            v = _mm512_max_epi64(least, _mm512_min_epi64(most, _mm512_add_epi64(v, _mm512_sll_epi64(mean, up))));
            _mm256_mask_storeu_epi32(to + i * channels + c, mask, _mm512_cvtepi64_epi32(v));
        }
    }
}
#endif

static PyObject *dequantise(PyObject *self, PyObject *args) {
    Py_buffer symbols, parameters, inv_gain, out;
    int channels, mean_shift, isa = -1;
    (void)self;
    if (!PyArg_ParseTuple(args, "y*y*y*w*ii|i", &symbols, &parameters, &inv_gain, &out, &channels, &mean_shift, &isa)) return NULL;
    Py_ssize_t n = channels > 0 ? out.len / 4 / channels : 0;
    int good = channels > 0 && channels <= 8192 && out.len == n * channels * 4 && symbols.len == out.len && parameters.len == out.len &&
               inv_gain.len == (Py_ssize_t)channels * 4 && mean_shift >= 0 && mean_shift <= MAX_MEAN_SHIFT;
    if (good) {
        Py_BEGIN_ALLOW_THREADS
        isa_of(isa)->dequantise(symbols.buf, parameters.buf, inv_gain.buf, out.buf, n, channels, mean_shift);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&symbols); PyBuffer_Release(&parameters); PyBuffer_Release(&inv_gain); PyBuffer_Release(&out);
    if (!good) { PyErr_SetString(PyExc_ValueError, "sizes of the operands contradict each other"); return NULL; }
    Py_RETURN_NONE;
}

/* In place: y_hat += (tanh[(l + 32768) >> 4] * inv_gain + 2^23) >> 24; the table is 0.5 * tanh in Q16. */
static PyObject *refine(PyObject *self, PyObject *args) {
    Py_buffer y, l, table, inv_gain;
    int channels;
    (void)self;
    if (!PyArg_ParseTuple(args, "w*y*y*y*i", &y, &l, &table, &inv_gain, &channels)) return NULL;
    Py_ssize_t n = channels > 0 ? y.len / 4 / channels : 0;
    int good = channels > 0 && channels <= 8192 && y.len == n * channels * 4 && l.len * 2 == y.len && table.len == 4096 * 2 && inv_gain.len == (Py_ssize_t)channels * 4;
    if (good) {
        Py_BEGIN_ALLOW_THREADS
        int32_t *to = y.buf;
        const int16_t *in = l.buf, *tanh_table = table.buf;
        const int32_t *g = inv_gain.buf;
        for (Py_ssize_t i = 0; i < n; i++, in += channels, to += channels)
            for (int c = 0; c < channels; c++) to[c] += (int32_t)(((int64_t)tanh_table[(in[c] + 32768) >> 4] * g[c] + 8388608) >> 24);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&y); PyBuffer_Release(&l); PyBuffer_Release(&table); PyBuffer_Release(&inv_gain);
    if (!good) { PyErr_SetString(PyExc_ValueError, "sizes of the operands contradict each other"); return NULL; }
    Py_RETURN_NONE;
}

/* Encoder only: symbols of latents, rounded towards zero where `zone` [tables][16] says that the bits are worth more than the error. */
static INLINED void quantise_plain(const int32_t *in, const int16_t *m, const uint8_t *t, const float *g, const float *z, int32_t *to, Py_ssize_t n, int channels,
                           int mean_shift) {
    for (Py_ssize_t i = 0; i < n; i++, in += channels, m += 2 * channels, t += channels, to += channels)
        for (int c = 0; c < channels; c++) {
            float exact = (float)(in[c] - m[channels + c] * (1 << mean_shift)) * g[c], size = fabsf(exact), r = rintf(size);
            if (size - r < z[t[c] * 16 + (r < 15 ? (int)r : 15)] - 0.5f) r -= 1;
            to[c] = (int32_t)(exact < 0 ? -r : r);
        }
}

#if WITH_X86
AVX512_TARGET static void quantise_avx512(const int32_t *in, const int16_t *m, const uint8_t *t, const float *g, const float *z, int32_t *to, Py_ssize_t n,
                                          int channels, int mean_shift) {
    const __m512 half = _mm512_set1_ps(0.5f), one = _mm512_set1_ps(1);
    const __m128i up = _mm_cvtsi32_si128(mean_shift);
    for (int c = 0; c < channels; c += LANES) {
        __mmask16 mask = first_channels(channels - c);
        const __m512 gain = _mm512_maskz_loadu_ps(mask, g + c);
        for (Py_ssize_t i = 0; i < n; i++) {
            __m512i mean = _mm512_sll_epi32(_mm512_cvtepi16_epi32(_mm256_maskz_loadu_epi16(mask, m + (2 * i + 1) * channels + c)), up);
            __m512i residual = _mm512_sub_epi32(_mm512_maskz_loadu_epi32(mask, in + i * channels + c), mean);
            __m512 exact = _mm512_mul_ps(_mm512_cvtepi32_ps(residual), gain), size = _mm512_abs_ps(exact);
            __m512 r = _mm512_roundscale_ps(size, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
            __m512i table = _mm512_slli_epi32(_mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(mask, t + i * channels + c)), 4);
            __m512i entry = _mm512_add_epi32(table, _mm512_cvttps_epi32(_mm512_min_ps(r, _mm512_set1_ps(15))));
            __m512 zone = _mm512_mask_i32gather_ps(half, mask, entry, z, 4);
            __mmask16 nearer = _mm512_cmp_ps_mask(_mm512_sub_ps(size, r), _mm512_sub_ps(zone, half), _CMP_LT_OQ);
            __m512i symbol = _mm512_cvttps_epi32(_mm512_mask_sub_ps(r, nearer, r, one));
            __mmask16 negative = _mm512_cmp_ps_mask(exact, _mm512_setzero_ps(), _CMP_LT_OQ);
            _mm512_mask_storeu_epi32(to + i * channels + c, mask, _mm512_mask_sub_epi32(symbol, negative, _mm512_setzero_si512(), symbol));
        }
    }
}
#endif

static PyObject *quantise(PyObject *self, PyObject *args) {
    Py_buffer y, parameters, indexes, gain, zone, out;
    int channels, mean_shift, isa = -1;
    (void)self;
    if (!PyArg_ParseTuple(args, "y*y*y*y*y*w*ii|i", &y, &parameters, &indexes, &gain, &zone, &out, &channels, &mean_shift, &isa)) return NULL;
    Py_ssize_t n = channels > 0 ? out.len / 4 / channels : 0, tables = zone.len / 64;
    int good = channels > 0 && channels <= 8192 && out.len == n * channels * 4 && y.len == out.len && parameters.len == out.len && indexes.len * 4 == out.len &&
               gain.len == (Py_ssize_t)channels * 4 && zone.len == tables * 64 && tables >= 256 && mean_shift >= 0 &&
               mean_shift <= MAX_MEAN_SHIFT;
    if (good) {
        Py_BEGIN_ALLOW_THREADS
        isa_of(isa)->quantise(y.buf, parameters.buf, indexes.buf, gain.buf, zone.buf, out.buf, n, channels, mean_shift);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&y); PyBuffer_Release(&parameters); PyBuffer_Release(&indexes); PyBuffer_Release(&gain); PyBuffer_Release(&zone);
    PyBuffer_Release(&out);
    if (!good) { PyErr_SetString(PyExc_ValueError, "sizes of the operands contradict each other"); return NULL; }
    Py_RETURN_NONE;
}

#if WITH_X86
/* What the compiler makes of them with AVX2, whose shifts differ from channel to channel. */
#define WITH_AVX2(NAME, PARAMETERS, ...) __attribute__((target("avx2"))) static void NAME##_avx2 PARAMETERS { NAME##_plain(__VA_ARGS__); }
WITH_AVX2(narrow, (const int32_t *in, Py_ssize_t step, const int32_t *shift, int16_t *out, Py_ssize_t out_step, Py_ssize_t n, int channels), in, step, shift, out, out_step, n, channels)
WITH_AVX2(gather, (const int32_t *state, const int32_t *shift, int16_t *out, Py_ssize_t h, Py_ssize_t w), state, shift, out, h, w)
WITH_AVX2(corrected, (const int32_t *state, const int16_t *correction, int shift, uint8_t *out, Py_ssize_t h, Py_ssize_t w), state, correction, shift, out, h, w)
WITH_AVX2(couple, (int32_t *to, const int16_t *from, const float *f, double t_factor, Py_ssize_t n, int channels, int affine), to, from, f, t_factor, n, channels, affine)
WITH_AVX2(dequantise, (const int32_t *s, const int16_t *m, const int32_t *g, int32_t *to, Py_ssize_t n, int channels, int mean_shift), s, m, g, to, n, channels, mean_shift)
WITH_AVX2(quantise, (const int32_t *in, const int16_t *m, const uint8_t *t, const float *g, const float *z, int32_t *to, Py_ssize_t n, int channels, int mean_shift), in, m, t, g, z, to, n, channels, mean_shift)
#endif

static const Isa ISAS[] = {
    {"scalar", 1, micro_scalar, NULL, epilogue_plain, unit_plain, mix_plain, narrow_plain, gather_plain, corrected_plain, couple_plain, levels_plain, dequantise_plain, quantise_plain, 0, ceiling_scalar},
#if WITH_X86
    {"SSE4.1", 3, micro_sse41, NULL, epilogue_plain, unit_plain, mix_plain, narrow_plain, gather_plain, corrected_plain, couple_plain, levels_plain, dequantise_plain, quantise_plain, 0, ceiling_sse41},
    {"AVX2", 6, micro_avx2, NULL, epilogue_avx2, unit_avx2, mix_avx2, narrow_avx2, gather_avx2, corrected_avx2, couple_avx2, levels_plain, dequantise_avx2, quantise_avx2, 0, ceiling_avx2},
    {"AVX-512 VNNI", 12, micro_avx512, micro_avx512_two, epilogue_avx512, unit_avx512, mix_avx512, narrow_avx512, gather_avx512, corrected_avx512, couple_avx512, levels_avx512, dequantise_avx512, quantise_avx512, 0, ceiling_avx512},
#if WITH_AMX
    {"AMX", 12, micro_avx512, micro_avx512_two, epilogue_avx512, unit_avx512, mix_avx512, narrow_avx512, gather_avx512, corrected_avx512, couple_avx512, levels_avx512, dequantise_avx512, quantise_avx512, 1, ceiling_tiles},
#endif
#elif WITH_NEON
    {"NEON", 4, micro_neon, NULL, epilogue_plain, unit_plain, mix_plain, narrow_plain, gather_plain, corrected_plain, couple_plain, levels_plain, dequantise_plain, quantise_plain, 0, ceiling_neon},
#endif
};

#if WITH_AMX
/* Whether there are tiles, and the system lets this process use them: Linux keeps their 8 KiB a thread for those alone who ask. */
static int tiles_granted(void) {
    static int granted = -1;
    if (granted < 0) {
        uint32_t a, b, c, d;
        __asm__ volatile("cpuid" : "=a"(a), "=b"(b), "=c"(c), "=d"(d) : "a"(7), "c"(0));
        granted = (d >> 24 & 3) == 3 && syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18 /* XFEATURE_XTILEDATA */) == 0;
    }
    return granted;
}
#endif

/* The last of ISAS that this processor has; it has all before it too. */
static int best_isa(void) {
#if WITH_X86
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
#if WITH_AMX
        if (tiles_granted()) return 4;
#endif
        return 3;
    }
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return 2;
    if (__builtin_cpu_supports("sse4.1")) return 1;
#elif WITH_NEON
    return 1;
#endif
    return 0;
}

static const Isa *isa_of(int level) {
    int best = best_isa();
    return &ISAS[level < 0 || level > best ? best : level];
}

static PyObject *mix(PyObject *self, PyObject *args) {
    Py_buffer x, matrix, bias, out;
    int channels, isa;
    (void)self;
    if (!PyArg_ParseTuple(args, "y*y*y*w*ii", &x, &matrix, &bias, &out, &channels, &isa)) return NULL;
    Py_ssize_t n = channels > 0 ? x.len / 4 / channels : 0;
    int good = channels >= 2 && channels <= 512 && x.len == n * channels * 4 && out.len == x.len && bias.len == (Py_ssize_t)channels * 8 &&
               matrix.len == (Py_ssize_t)channels * channels * 8;
    if (good) {
        Py_BEGIN_ALLOW_THREADS
        isa_of(isa)->mix(x.buf, matrix.buf, bias.buf, out.buf, n, channels);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&x); PyBuffer_Release(&matrix); PyBuffer_Release(&bias); PyBuffer_Release(&out);
    if (!good) { PyErr_SetString(PyExc_ValueError, "sizes of the operands contradict each other"); return NULL; }
    Py_RETURN_NONE;
}

/* Analysis: bits and squared error (in steps of the latent, Q16) that every one of `rates` gains would give, over every `stride`-th row and column. */
static PyObject *tally(PyObject *self, PyObject *args) {
    Py_buffer y, parameters, log2, log_gain, gain, inv_gain, zone, bits, base, size, offsets, out;
    int h, w, channels, mean_shift, first, step, tables, stride, rates;
    (void)self;
    if (!PyArg_ParseTuple(args, "y*y*y*y*y*y*y*y*y*y*y*w*iiiiiiiii", &y, &parameters, &log2, &log_gain, &gain, &inv_gain, &zone, &bits, &base, &size,
                          &offsets, &out, &h, &w, &channels, &mean_shift, &first, &step, &tables, &stride, &rates))
        return NULL;
    int sane = h > 0 && w > 0 && h <= MAX_SIDE && w <= MAX_SIDE && channels > 0 && channels <= 8192 && rates > 0 && rates <= 4096;
    Py_ssize_t n = sane ? (Py_ssize_t)h * w * channels : 0;
    int good = sane && mean_shift >= 0 && mean_shift <= MAX_MEAN_SHIFT && stride > 0 && rates > 0 && step > 0 && step <= 65536 && tables > 0 && tables <= 256 && y.len == n * 4 &&
               parameters.len == n * 4 && log2.len == 32768 * 4 && log_gain.len == (Py_ssize_t)rates * channels * 4 && gain.len == log_gain.len &&
               inv_gain.len == log_gain.len && zone.len >= tables * 64 && base.len == tables * 4 && size.len == base.len && offsets.len == base.len &&
               out.len == (Py_ssize_t)rates * 16;
    if (good)
        for (int t = 0; t < tables; t++) {
            int32_t b = ((const int32_t *)base.buf)[t], s = ((const int32_t *)size.buf)[t];
            if (b < 0 || s < 0 || (Py_ssize_t)b + s >= bits.len / 4) good = 0;
        }
    if (good) {
        Py_BEGIN_ALLOW_THREADS
        const int32_t *l = log2.buf, *b0 = base.buf, *sizes = size.buf, *offset = offsets.buf;
        const float *z = zone.buf, *cost = bits.buf;
        double *sums = out.buf;
        int32_t top = tables * step - 1;
        float per_step = (1 - 0x1p-20f) / (float)step; /* an estimate: at the very edge of a table it may name the one below */
        memset(sums, 0, out.len);
        for (int a = 0; a < rates; a++) {
            const int32_t *lg = (const int32_t *)log_gain.buf + (size_t)a * channels;
            const float *g = (const float *)gain.buf + (size_t)a * channels, *ig = (const float *)inv_gain.buf + (size_t)a * channels;
            for (int r = 0; r < h; r += stride) {
                float row_bits = 0, row_error = 0;
                for (int x = 0; x < w; x += stride) {
                    const int32_t *in = (const int32_t *)y.buf + ((size_t)r * w + x) * channels;
                    const int16_t *m = (const int16_t *)parameters.buf + ((size_t)r * w + x) * 2 * channels;
                    for (int c = 0; c < channels; c++) {
                        int32_t v = m[c] > 0 ? l[m[c]] + lg[c] - first : 0, t = (int32_t)((float)(v < 0 ? 0 : v > top ? top : v) * per_step);
                        float residual = (float)(in[c] - m[channels + c] * (1 << mean_shift)), exact = residual * g[c], magnitude = fabsf(exact);
                        float k = rintf(magnitude), error;
                        if (magnitude - k < z[t * 16 + (k < 15 ? (int)k : 15)] - 0.5f) k -= 1;
                        error = residual - (exact < 0 ? -k : k) * ig[c];
                        row_error += error * error;
                        int64_t position = (int64_t)(exact < 0 ? -k : k) - offset[t];
                        row_bits += cost[b0[t] + (position >= 0 && position < sizes[t] ? position : sizes[t])];
                    }
                }
                sums[2 * a] += row_bits;
                sums[2 * a + 1] += row_error;
            }
        }
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&y); PyBuffer_Release(&parameters); PyBuffer_Release(&log2); PyBuffer_Release(&log_gain); PyBuffer_Release(&gain);
    PyBuffer_Release(&inv_gain); PyBuffer_Release(&zone); PyBuffer_Release(&bits); PyBuffer_Release(&base); PyBuffer_Release(&size);
    PyBuffer_Release(&offsets); PyBuffer_Release(&out);
    if (!good) { PyErr_SetString(PyExc_ValueError, "sizes of the operands contradict each other"); return NULL; }
    Py_RETURN_NONE;
}

/* Activations come and go by the megabyte; given back to the kernel each time, their page faults cost a quarter of the speed. What is larger than the
 * threshold are the few arrays of a whole large picture: between small ones on the heap they would leave holes that nothing fits. */
static PyObject *keep_memory(PyObject *self, PyObject *args) {
    (void)self; (void)args;
#if defined(__GLIBC__)
    mallopt(M_MMAP_THRESHOLD, 16 << 20);
    mallopt(M_TRIM_THRESHOLD, 1 << 30);
#endif
    Py_RETURN_NONE;
}

/* Holes of the heap and its end back to the system: between the steps of a large picture they are as large as what the next one takes. */
static PyObject *give_back(PyObject *self, PyObject *args) {
    (void)self; (void)args;
#if defined(__GLIBC__)
    Py_BEGIN_ALLOW_THREADS
    malloc_trim(0);
    Py_END_ALLOW_THREADS
#endif
    Py_RETURN_NONE;
}

static PyObject *isa_py(PyObject *self, PyObject *args) { (void)self; (void)args; return PyLong_FromLong(best_isa()); }

static PyObject *isa_name(PyObject *self, PyObject *args) {
    int level;
    (void)self;
    if (!PyArg_ParseTuple(args, "i", &level)) return NULL;
    return PyUnicode_FromString(isa_of(level)->name);
}

static PyObject *ceiling(PyObject *self, PyObject *args) {
    int rounds, isa, products;
    (void)self;
    if (!PyArg_ParseTuple(args, "ii", &rounds, &isa)) return NULL;
    Py_BEGIN_ALLOW_THREADS
    products = isa_of(isa)->ceiling(rounds);
    Py_END_ALLOW_THREADS
    return PyLong_FromLong((long)products * rounds);
}

static PyMethodDef methods[] = {
    {"conv", conv, METH_VARARGS, "One layer over rows [row0, row1)."},
    {"unit", unit, METH_VARARGS, "The linear and affine part of an inverse unit."},
    {"narrow", narrow, METH_VARARGS, "int32 state to int16 activations."},
    {"gather", gather, METH_VARARGS, "A picture's state to the activations of its post-filter."},
    {"corrected", corrected, METH_VARARGS, "A picture's state and what its post-filter gives to pixels."},
    {"place", place, METH_VARARGS, "Copy pieces from one array to another."},
    {"mix", mix, METH_VARARGS, "The linear part of a forward unit (encoder)."},
    {"couple", couple, METH_VARARGS, "The affine part of a forward unit (encoder)."},
    {"levels", levels, METH_VARARGS, "Scales to table indexes."},
    {"dequantise", dequantise, METH_VARARGS, "Symbols and means to latents."},
    {"refine", refine, METH_VARARGS, "Latent residual prediction."},
    {"quantise", quantise, METH_VARARGS, "Latents to symbols (encoder)."},
    {"tally", tally, METH_VARARGS, "Bits and squared error of a stream at several rates (analysis)."},
    {"keep_memory", keep_memory, METH_NOARGS, "Let this process keep freed memory for its next layers."},
    {"give_back", give_back, METH_NOARGS, "Give freed memory back to the system."},
    {"ceiling", ceiling, METH_VARARGS, "Multiply operands in registers, for whoever measures; returns how many products of int16 that were."},
    {"isa", isa_py, METH_NOARGS, "Best instruction set here: 0 scalar; on x86 1 SSE4.1, 2 AVX2, 3 AVX-512 VNNI, 4 AMX; on 64-bit ARM 1 NEON."},
    {"isa_name", isa_name, METH_VARARGS, "Name of an instruction set of this processor."},
    {NULL, NULL, 0, NULL},
};
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_int16", NULL, -1, methods, NULL, NULL, NULL, NULL};
PyMODINIT_FUNC PyInit__int16(void) { return PyModule_Create(&module); }
