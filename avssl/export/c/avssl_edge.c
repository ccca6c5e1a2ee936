/* See avssl_edge.h. Written for reading: kernels are plain loops, to be replaced by a vendor's where speed matters. */
#include "avssl_edge.h"

#include <math.h>
#include <string.h>

typedef struct {
    const float *weight, *bias; /* [out][in], [out] */
} dense_f32;

typedef struct {
    const int8_t *weight; /* [out][in] */
    const int32_t *bias;  /* [out], at the scale of the accumulator */
    const float *scale;   /* [out], accumulator -> real */
    float inverse;        /* 1 / scale of the input */
} dense_int8;

#if AVSSL_STEM
typedef struct {
    int bands, channels, outputs; /* of the map it reads; its weights are [out][time tap][frequency tap][channel] */
    int ring;                     /* where the last three rows of its own map are kept */
} conv_shape;
#endif

typedef struct {
    const float *weight, *bias;
    float eps;
} layer_norm;

typedef struct {
    layer_norm attention_norm, output_norm;
} layer_common;

typedef struct {
    dense_f32 query, key, value, output, up, down;
} layer_f32;

typedef struct {
    dense_int8 query, key, value, output, up, down;
    float x_scale, key_inverse, value_inverse, query_inverse;
    float score_factor; /* query scale * key scale / sqrt(head width) */
    float value_scale;
} layer_int8;

#include "model_weights.h"
#if AVSSL_FLOAT
#include "model_weights_f32.h"
#endif

#define HEAD_WIDTH (AVSSL_DIM / AVSSL_HEADS)
#define INPUTS (AVSSL_STACK * AVSSL_FRAME_FEATURES)

static float scores[AVSSL_MAX_TOKENS];

/* ---- shared pieces --------------------------------------------------------------------------------------------- */

static void normalise(const layer_norm *norm, float *x)
{
    float mean = 0, variance = 0;
    for (int i = 0; i < AVSSL_DIM; i++) mean += x[i];
    mean /= AVSSL_DIM;
    for (int i = 0; i < AVSSL_DIM; i++) variance += (x[i] - mean) * (x[i] - mean);
    const float gain = 1 / sqrtf(variance / AVSSL_DIM + norm->eps);
    for (int i = 0; i < AVSSL_DIM; i++) x[i] = (x[i] - mean) * gain * norm->weight[i] + norm->bias[i];
}

static void activate(float *x, int n)
{
    for (int i = 0; i < n; i++) {
#if AVSSL_ACTIVATION == 0 /* GELU */
        x[i] = 0.5f * x[i] * (1 + erff(x[i] * 0.70710678f));
#elif AVSSL_ACTIVATION == 1 /* GELU, tanh form */
        x[i] = 0.5f * x[i] * (1 + tanhf(0.79788456f * (x[i] + 0.044715f * x[i] * x[i] * x[i])));
#else /* ReLU */
        x[i] = x[i] > 0 ? x[i] : 0;
#endif
    }
}

static void add_position(int token, float *x)
{
#if AVSSL_POSITIONS == 1 /* computed: a table would be larger than the weights */
    for (int i = 0; i < AVSSL_DIM / 2; i++) {
        const float angle = (float)token * position_rates[i];
        x[2 * i] += sinf(angle);
        x[2 * i + 1] += cosf(angle);
    }
#elif AVSSL_POSITIONS == 2 /* learned */
    for (int i = 0; i < AVSSL_DIM; i++) x[i] += position_table[token * AVSSL_DIM + i];
#else
    (void)token;
    (void)x;
#endif
}

/* Subtract the largest score and exponentiate; returns nothing but leaves exp(score - max) in place. */
static void exponentiate(int n)
{
    float top = scores[0];
    for (int j = 1; j < n; j++) top = scores[j] > top ? scores[j] : top;
    for (int j = 0; j < n; j++) scores[j] = expf(scores[j] - top);
}

#if AVSSL_STEM
/* Where a 3x3 convolution of stride 2 reads for its output (t, b): the offset of a tap in the map, or -1 for the zeros
 * around it. The frames are all there; of the maps behind them, three rows. */
static int tap(int layer, int rows, int t, int b, int i)
{
    const conv_shape *shape = &stem_shapes[layer];
    const int row = 2 * t + i / 3 - 1, band = 2 * b + i % 3 - 1;
    if (row < 0 || row >= rows || band < 0 || band >= shape->bands) return -1;
    return ((layer ? row % 3 : row) * shape->bands + band) * shape->channels;
}

/* Adds a band of the last map to the mean of its bin. */
static void collect(const float *point, int outputs, int band, int bands, float *row)
{
    float *bin = row + band / (bands / AVSSL_STEM_BINS) * outputs;
    for (int o = 0; o < outputs; o++) bin[o] += point[o] / (float)(bands / AVSSL_STEM_BINS);
}

static void rectify(float *x, int n)
{
    for (int i = 0; i < n; i++) x[i] = x[i] > 0 ? x[i] : 0;
}

/* Frames -> the shorter ones that the encoder reads, row by row, each as soon as the rows it needs are there: of `count`
 * rows of its input, row_of makes row t of layer l. Returns the number of shorter frames. */
static int stem(const void *frames, int count, void (*row_of)(const void *frames, int l, int t, int count))
{
    int rows[AVSSL_STEM + 1] = {count};
    for (int l = 0; l < AVSSL_STEM; l++) rows[l + 1] = (rows[l] + 1) / 2;
    for (int first = 0; first < rows[1]; first++)
        for (int l = 0, t = first; l < AVSSL_STEM; l++, t /= 2) {
            row_of(frames, l, t, rows[l]);
            if (t % 2 == 0 && t != rows[l + 1] - 1) break; /* the next layer's row waits for another of this one */
        }
    return rows[AVSSL_STEM];
}
#endif

static int tokens_of(int frames) { return (frames + AVSSL_STACK - 1) / AVSSL_STACK + AVSSL_PREFIX; }

/* ---- float ----------------------------------------------------------------------------------------------------- */
#if AVSSL_FLOAT

static float x32[AVSSL_MAX_TOKENS * AVSSL_DIM], k32[AVSSL_MAX_TOKENS * AVSSL_DIM], v32[AVSSL_MAX_TOKENS * AVSSL_DIM];

static void apply_f32(const dense_f32 *d, int outputs, int inputs, const float *x, float *y)
{
    for (int o = 0; o < outputs; o++) {
        float sum = d->bias[o];
        for (int i = 0; i < inputs; i++) sum += d->weight[o * inputs + i] * x[i];
        y[o] = sum;
    }
}

#if AVSSL_STEM
static float maps32[AVSSL_STEM_MAPS]; /* three rows of each map between two layers, then what the stem gives */

/* Row t of layer l. */
static void stem_row_f32(const void *frames, int l, int t, int count)
{
    float point[AVSSL_STEM_WIDEST], row[AVSSL_FRAME_FEATURES] = {0};
    const conv_shape *shape = &stem_shapes[l];
    const dense_f32 *d = &stem_dense_f32[l];
    const float *map = l ? maps32 + stem_shapes[l - 1].ring : (const float *)frames;
    const int last = l == AVSSL_STEM - 1, bands = (shape->bands + 1) / 2;
    for (int b = 0; b < bands; b++) {
        memcpy(point, d->bias, sizeof *point * (size_t)shape->outputs);
        for (int i = 0; i < 9; i++) {
            const int at = tap(l, count, t, b, i);
            for (int o = 0; at >= 0 && o < shape->outputs; o++)
                for (int c = 0; c < shape->channels; c++)
                    point[o] += d->weight[(o * 9 + i) * shape->channels + c] * map[at + c];
        }
        rectify(point, shape->outputs);
        if (last)
            collect(point, shape->outputs, b, bands, row);
        else
            memcpy(maps32 + shape->ring + (t % 3 * bands + b) * shape->outputs, point,
                   sizeof *point * (size_t)shape->outputs);
    }
    if (last) memcpy(maps32 + AVSSL_STEM_RINGS + t * AVSSL_FRAME_FEATURES, row, sizeof row);
}
#endif

/* Attention of one query; context over all n tokens. */
static void attend_f32(const float *query, int n, float *context)
{
    for (int h = 0; h < AVSSL_HEADS; h++) {
        const int at = h * HEAD_WIDTH;
        for (int j = 0; j < n; j++) {
            float sum = 0;
            for (int i = 0; i < HEAD_WIDTH; i++) sum += query[at + i] * k32[j * AVSSL_DIM + at + i];
            scores[j] = sum * AVSSL_ATTENTION_SCALE;
        }
        exponentiate(n);
        float total = 0;
        for (int j = 0; j < n; j++) total += scores[j];
        for (int i = 0; i < HEAD_WIDTH; i++) {
            float sum = 0;
            for (int j = 0; j < n; j++) sum += scores[j] * v32[j * AVSSL_DIM + at + i];
            context[at + i] = sum / total;
        }
    }
}

int avssl_forward_f32(const float *frames, int count, float *out)
{
    float query[AVSSL_DIM], context[AVSSL_DIM], row[AVSSL_DIM], hidden[AVSSL_FF], input[INPUTS];
    if (count < 1 || count > AVSSL_MAX_FRAMES) return -1;
#if AVSSL_STEM
    count = stem(frames, count, stem_row_f32);
    frames = maps32 + AVSSL_STEM_RINGS;
#endif
    const int n = tokens_of(count);
    for (int t = 0; t < n; t++) {
        float *x = x32 + t * AVSSL_DIM;
        if (t < AVSSL_PREFIX) {
            memcpy(x, first_token, sizeof first_token);
        } else {
            for (int i = 0; i < INPUTS; i++) { /* the last token is filled with zeros */
                const int frame = (t - AVSSL_PREFIX) * AVSSL_STACK + i / AVSSL_FRAME_FEATURES;
                input[i] = frame < count ? frames[frame * AVSSL_FRAME_FEATURES + i % AVSSL_FRAME_FEATURES] : 0;
            }
            apply_f32(&project_f32, AVSSL_DIM, INPUTS, input, x);
        }
        add_position(t, x);
        normalise(&first_norm, x);
    }
    for (int l = 0; l < AVSSL_LAYERS; l++) {
        const layer_f32 *layer = &layers_f32[l];
        for (int t = 0; t < n; t++) {
            apply_f32(&layer->key, AVSSL_DIM, AVSSL_DIM, x32 + t * AVSSL_DIM, k32 + t * AVSSL_DIM);
            apply_f32(&layer->value, AVSSL_DIM, AVSSL_DIM, x32 + t * AVSSL_DIM, v32 + t * AVSSL_DIM);
        }
        /* Only the first token is pooled: the last layer computes no other. */
        const int rows = AVSSL_POOL_FIRST && l == AVSSL_LAYERS - 1 ? 1 : n;
        for (int t = 0; t < rows; t++) { /* in place: keys and values of every token are kept */
            float *x = x32 + t * AVSSL_DIM;
            apply_f32(&layer->query, AVSSL_DIM, AVSSL_DIM, x, query);
            attend_f32(query, n, context);
            apply_f32(&layer->output, AVSSL_DIM, AVSSL_DIM, context, row);
            for (int i = 0; i < AVSSL_DIM; i++) x[i] += row[i];
            normalise(&layers_common[l].attention_norm, x);
            apply_f32(&layer->up, AVSSL_FF, AVSSL_DIM, x, hidden);
            activate(hidden, AVSSL_FF);
            apply_f32(&layer->down, AVSSL_DIM, AVSSL_FF, hidden, row);
            for (int i = 0; i < AVSSL_DIM; i++) x[i] += row[i];
            normalise(&layers_common[l].output_norm, x);
        }
    }
    memcpy(row, x32, sizeof row);
#if !AVSSL_POOL_FIRST
    for (int t = 1; t < n; t++)
        for (int i = 0; i < AVSSL_DIM; i++) row[i] += x32[t * AVSSL_DIM + i];
    for (int i = 0; i < AVSSL_DIM; i++) row[i] /= (float)n;
#endif
#if AVSSL_HAS_POOLER
    apply_f32(&pooler_f32, AVSSL_DIM, AVSSL_DIM, row, context);
    for (int i = 0; i < AVSSL_DIM; i++) row[i] = tanhf(context[i]);
#endif
#if AVSSL_HAS_HEAD_NORM
    normalise(&head_norm, row);
#endif
#if AVSSL_HAS_HEAD
    apply_f32(&head_f32, AVSSL_OUTPUTS, AVSSL_DIM, row, out);
#else
    memcpy(out, row, sizeof row);
#endif
    return 0;
}
#endif

/* ---- int8 ------------------------------------------------------------------------------------------------------ */

static int8_t x8[AVSSL_MAX_TOKENS * AVSSL_DIM], k8[AVSSL_MAX_TOKENS * AVSSL_DIM], v8[AVSSL_MAX_TOKENS * AVSSL_DIM];

static void quantise(const float *x, int n, float inverse, int8_t *out)
{
    for (int i = 0; i < n; i++) {
        const float q = rintf(x[i] * inverse); /* half to even, as the reference rounds */
        out[i] = (int8_t)(q < -127 ? -127 : q > 127 ? 127 : q);
    }
}

static void apply_int8(const dense_int8 *d, int outputs, int inputs, const int8_t *x, float *y)
{
    for (int o = 0; o < outputs; o++) {
        int32_t sum = d->bias[o];
        for (int i = 0; i < inputs; i++) sum += (int32_t)d->weight[o * inputs + i] * x[i];
        y[o] = (float)sum * d->scale[o];
    }
}

#if AVSSL_STEM
static int8_t maps8[AVSSL_STEM_MAPS]; /* three rows of each map between two layers, then what the stem gives */

/* Row t of layer l, at the scale of the layer that reads it. */
static void stem_row_int8(const void *frames, int l, int t, int count)
{
    float point[AVSSL_STEM_WIDEST], row[AVSSL_FRAME_FEATURES] = {0};
    const conv_shape *shape = &stem_shapes[l];
    const dense_int8 *d = &stem_dense_int8[l];
    const int8_t *map = l ? maps8 + stem_shapes[l - 1].ring : (const int8_t *)frames;
    const int last = l == AVSSL_STEM - 1, bands = (shape->bands + 1) / 2;
    for (int b = 0; b < bands; b++) {
        int32_t sums[AVSSL_STEM_WIDEST];
        memcpy(sums, d->bias, sizeof *sums * (size_t)shape->outputs);
        for (int i = 0; i < 9; i++) {
            const int at = tap(l, count, t, b, i);
            for (int o = 0; at >= 0 && o < shape->outputs; o++)
                for (int c = 0; c < shape->channels; c++)
                    sums[o] += (int32_t)d->weight[(o * 9 + i) * shape->channels + c] * map[at + c];
        }
        for (int o = 0; o < shape->outputs; o++) point[o] = (float)sums[o] * d->scale[o];
        rectify(point, shape->outputs);
        if (last)
            collect(point, shape->outputs, b, bands, row);
        else
            quantise(point, shape->outputs, stem_dense_int8[l + 1].inverse,
                     maps8 + shape->ring + (t % 3 * bands + b) * shape->outputs);
    }
    if (last)
        quantise(row, AVSSL_FRAME_FEATURES, project_int8.inverse,
                 maps8 + AVSSL_STEM_RINGS + t * AVSSL_FRAME_FEATURES);
}
#endif

/* Attention weights as bytes relative to the largest of their row: a flat softmax over hundreds of tokens would round to
 * nothing as absolute probabilities. */
static void attend_int8(const layer_int8 *layer, const int8_t *query, int n, float *context)
{
    for (int h = 0; h < AVSSL_HEADS; h++) {
        const int at = h * HEAD_WIDTH;
        for (int j = 0; j < n; j++) {
            int32_t sum = 0;
            for (int i = 0; i < HEAD_WIDTH; i++) sum += (int32_t)query[at + i] * k8[j * AVSSL_DIM + at + i];
            scores[j] = (float)sum * layer->score_factor;
        }
        exponentiate(n);
        int32_t total = 0, sums[HEAD_WIDTH] = {0};
        for (int j = 0; j < n; j++) {
            const int32_t weight = (int32_t)rintf(scores[j] * 255);
            total += weight;
            for (int i = 0; i < HEAD_WIDTH; i++) sums[i] += weight * v8[j * AVSSL_DIM + at + i];
        }
        for (int i = 0; i < HEAD_WIDTH; i++) context[at + i] = (float)sums[i] / (float)total * layer->value_scale;
    }
}

void avssl_quantise_frame(const float *frame, int8_t *out)
{
#if AVSSL_STEM
    quantise(frame, AVSSL_FEATURES, stem_dense_int8[0].inverse, out);
#else
    quantise(frame, AVSSL_FEATURES, project_int8.inverse, out);
#endif
}

int avssl_forward_int8(const int8_t *frames, int count, float *out)
{
    float row[AVSSL_DIM], y[AVSSL_DIM], hidden[AVSSL_FF], pooled[AVSSL_DIM] = {0};
    int8_t narrow[AVSSL_DIM], wide[AVSSL_FF], input[INPUTS];
    if (count < 1 || count > AVSSL_MAX_FRAMES) return -1;
#if AVSSL_STEM
    count = stem(frames, count, stem_row_int8);
    frames = maps8 + AVSSL_STEM_RINGS;
#endif
    const int n = tokens_of(count);
    for (int t = 0; t < n; t++) {
        if (t < AVSSL_PREFIX) {
            memcpy(row, first_token, sizeof first_token);
        } else {
            for (int i = 0; i < INPUTS; i++) {
                const int frame = (t - AVSSL_PREFIX) * AVSSL_STACK + i / AVSSL_FRAME_FEATURES;
                input[i] = frame < count ? frames[frame * AVSSL_FRAME_FEATURES + i % AVSSL_FRAME_FEATURES] : 0;
            }
            apply_int8(&project_int8, AVSSL_DIM, INPUTS, input, row);
        }
        add_position(t, row);
        normalise(&first_norm, row);
        quantise(row, AVSSL_DIM, layers_int8[0].query.inverse, x8 + t * AVSSL_DIM);
    }
    for (int l = 0; l < AVSSL_LAYERS; l++) {
        const layer_int8 *layer = &layers_int8[l];
        const int last = l == AVSSL_LAYERS - 1;
        for (int t = 0; t < n; t++) {
            const int8_t *x = x8 + t * AVSSL_DIM;
            apply_int8(&layer->key, AVSSL_DIM, AVSSL_DIM, x, row);
            quantise(row, AVSSL_DIM, layer->key_inverse, k8 + t * AVSSL_DIM);
            apply_int8(&layer->value, AVSSL_DIM, AVSSL_DIM, x, row);
            quantise(row, AVSSL_DIM, layer->value_inverse, v8 + t * AVSSL_DIM);
        }
        const int rows = AVSSL_POOL_FIRST && last ? 1 : n;
        for (int t = 0; t < rows; t++) {
            int8_t *x = x8 + t * AVSSL_DIM;
            apply_int8(&layer->query, AVSSL_DIM, AVSSL_DIM, x, row);
            quantise(row, AVSSL_DIM, layer->query_inverse, narrow);
            attend_int8(layer, narrow, n, row);
            quantise(row, AVSSL_DIM, layer->output.inverse, narrow);
            apply_int8(&layer->output, AVSSL_DIM, AVSSL_DIM, narrow, row);
            for (int i = 0; i < AVSSL_DIM; i++) y[i] = (float)x[i] * layer->x_scale + row[i];
            normalise(&layers_common[l].attention_norm, y);
            quantise(y, AVSSL_DIM, layer->up.inverse, narrow);
            apply_int8(&layer->up, AVSSL_FF, AVSSL_DIM, narrow, hidden);
            activate(hidden, AVSSL_FF);
            quantise(hidden, AVSSL_FF, layer->down.inverse, wide);
            apply_int8(&layer->down, AVSSL_DIM, AVSSL_FF, wide, row);
            for (int i = 0; i < AVSSL_DIM; i++) y[i] += row[i];
            normalise(&layers_common[l].output_norm, y);
            if (last) { /* what is pooled is never rounded to int8 before the pooler */
                for (int i = 0; i < AVSSL_DIM; i++) pooled[i] += y[i];
            } else {
                quantise(y, AVSSL_DIM, layers_int8[l + 1].query.inverse, x);
            }
        }
    }
#if !AVSSL_POOL_FIRST
    for (int i = 0; i < AVSSL_DIM; i++) pooled[i] /= (float)n;
#endif
#if AVSSL_HAS_POOLER
    quantise(pooled, AVSSL_DIM, pooler_int8.inverse, narrow);
    apply_int8(&pooler_int8, AVSSL_DIM, AVSSL_DIM, narrow, row);
    for (int i = 0; i < AVSSL_DIM; i++) pooled[i] = tanhf(row[i]);
#endif
#if AVSSL_HAS_HEAD_NORM
    normalise(&head_norm, pooled);
#endif
#if AVSSL_HAS_HEAD
    quantise(pooled, AVSSL_DIM, head_int8.inverse, narrow);
    apply_int8(&head_int8, AVSSL_OUTPUTS, AVSSL_DIM, narrow, out);
#else
    memcpy(out, pooled, sizeof pooled);
#endif
    return 0;
}

uint32_t avssl_weights_crc32(void)
{
    uint32_t crc = 0xFFFFFFFFu;
    for (size_t m = 0; m < sizeof all_weights / sizeof *all_weights; m++)
        for (size_t i = 0; i < all_weights[m].size; i++) {
            crc ^= (uint8_t)all_weights[m].data[i];
            for (int bit = 0; bit < 8; bit++) crc = (crc >> 1) ^ (0xEDB88320u & (0u - (crc & 1u)));
        }
    return ~crc;
}
