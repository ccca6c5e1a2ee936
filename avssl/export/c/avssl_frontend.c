/* PCM to standardised frames, with the tables of frontend.h. Not reentrant: work buffers are static. */
#include "avssl_edge.h"

#if AVSSL_HAS_FRONTEND
#include <math.h>

#include "frontend.h"

#define PCM_SCALE (1.0f / 32768.0f)

#if AVSSL_HAS_STREAM
#define STREAM /* in the interface: see avssl_edge.h */
#else
#define STREAM static
#endif

static int16_t last[AVSSL_WINDOW]; /* the end of what was heard: sample i lies at i % AVSSL_WINDOW */
static int heard, given;           /* samples, frames */

#if AVSSL_KIND != 3 /* not raw segments */

static float re[AVSSL_N_FFT], im[AVSSL_N_FFT];

/* Radix-2, in place; AVSSL_N_FFT is a power of two. */
static void fft(void)
{
    for (int i = 1, j = 0; i < AVSSL_N_FFT; i++) {
        int bit = AVSSL_N_FFT >> 1;
        for (; j & bit; bit >>= 1) j ^= bit;
        j ^= bit;
        if (i < j) {
            const float a = re[i], b = im[i];
            re[i] = re[j];
            im[i] = im[j];
            re[j] = a;
            im[j] = b;
        }
    }
    for (int half = 1; half < AVSSL_N_FFT; half <<= 1) {
        const int step = AVSSL_N_FFT / (2 * half);
        for (int start = 0; start < AVSSL_N_FFT; start += 2 * half)
            for (int k = 0; k < half; k++) {
                const int a = start + k, b = a + half;
                const float c = twiddle_cos[k * step], s = -twiddle_sin[k * step];
                const float x = re[b] * c - im[b] * s, y = re[b] * s + im[b] * c;
                re[b] = re[a] - x;
                im[b] = im[a] - y;
                re[a] += x;
                im[a] += y;
            }
    }
}

/* Sample `at` of the clip, reflected at the edges without repeating them. */
static float sample(int at)
{
    if (at < 0) at = -at;
    if (at >= heard) at = 2 * (heard - 1) - at;
    return (float)last[at % AVSSL_WINDOW] * PCM_SCALE;
}

static float decibel(float energy) { return 10 * log10f(energy > AVSSL_FLOOR ? energy : AVSSL_FLOOR); }

static void one_frame(int start, float *out)
{
    for (int i = 0; i < AVSSL_N_FFT; i++) {
        re[i] = sample(start + i) * window[i];
        im[i] = 0;
    }
    fft();
    for (int i = 0; i <= AVSSL_N_FFT / 2; i++) { /* powers take the place of the real part */
        re[i] = re[i] * re[i] + im[i] * im[i];
        if (AVSSL_EXPONENT != 1.0f) re[i] = powf(re[i], AVSSL_EXPONENT);
    }
#if AVSSL_KIND == 2 /* spectrum */
    for (int i = 0; i < AVSSL_FEATURES; i++) out[i] = decibel(re[i]);
#else
    const float *weight = mel_weights;
    for (int m = 0; m < AVSSL_BANDS; m++) {
        float sum = 0;
        for (int i = 0; i < mel_length[m]; i++) sum += re[mel_start[m] + i] * *weight++;
        im[m] = decibel(sum); /* the imaginary part is free by now */
    }
#if AVSSL_KIND == 1 /* MFCC */
    for (int c = 0; c < AVSSL_FEATURES; c++) {
        float sum = 0;
        for (int m = 0; m < AVSSL_BANDS; m++) sum += im[m] * dct[c * AVSSL_BANDS + m];
        out[c] = sum;
    }
#else
    for (int m = 0; m < AVSSL_FEATURES; m++) out[m] = im[m];
#endif
#endif
}
#else

/* A segment, with zeros behind the end. */
static void one_frame(int start, float *out)
{
    for (int i = 0; i < AVSSL_WINDOW; i++)
        out[i] = start + i < heard ? (float)last[(start + i) % AVSSL_WINDOW] * PCM_SCALE : 0;
}
#endif

/* With fixed statistics, from training. */
static void scale(float *frame)
{
#if AVSSL_HAS_STATISTICS
    for (int i = 0; i < AVSSL_FEATURES; i++) frame[i] = (frame[i] - feature_shift[i]) * feature_gain[i];
#else
    (void)frame;
#endif
}

#if AVSSL_STANDARDISE != 0
/* Over features first ... last - 1 of all frames together. */
static void standardise(float *frames, int count, int first, int last)
{
    float mean = 0, variance = 0;
    const float n = (float)(count * (last - first));
    for (int t = 0; t < count; t++) { /* frame by frame: one long float sum would lose digits */
        float sum = 0;
        for (int i = first; i < last; i++) sum += frames[t * AVSSL_FEATURES + i];
        mean += sum / n;
    }
    for (int t = 0; t < count; t++) {
        float sum = 0;
        for (int i = first; i < last; i++) {
            const float d = frames[t * AVSSL_FEATURES + i] - mean;
            sum += d * d;
        }
        variance += sum / n;
    }
    const float gain = 1 / (sqrtf(variance) + AVSSL_EPS);
    for (int t = 0; t < count; t++)
        for (int i = first; i < last; i++) {
            float *x = &frames[t * AVSSL_FEATURES + i];
            *x = (*x - mean) * gain;
        }
}
#endif

/* Samples of a frame that lie before its place in the clip. */
#define BEFORE (AVSSL_CENTER ? AVSSL_WINDOW / 2 : 0)

static void give(float *frame)
{
    one_frame(given++ * AVSSL_HOP - BEFORE, frame);
#if AVSSL_STANDARDISE == 0
    scale(frame);
#endif
}

STREAM void avssl_stream_begin(void) { heard = given = 0; }

STREAM int avssl_stream_next(const int16_t **at, const int16_t *end, float *frame)
{
    if (given == AVSSL_MAX_FRAMES) {
        *at = end;
        return 0;
    }
    /* The first centred frame reads one more: its reflection begins with sample 1. */
    const int wanted = given * AVSSL_HOP - BEFORE + AVSSL_WINDOW + (AVSSL_CENTER && given == 0);
    for (; heard < wanted; heard++) {
        if (*at == end) return 0;
        last[heard % AVSSL_WINDOW] = *(*at)++;
    }
    give(frame);
    return 1;
}

STREAM int avssl_stream_end(float *frame)
{
#if AVSSL_KIND == 3
    const int more = given * AVSSL_HOP < heard;
#else
    const int more = AVSSL_CENTER && heard > BEFORE && given * AVSSL_HOP <= heard;
#endif
    if (!more || given == AVSSL_MAX_FRAMES) return 0;
    give(frame);
    return 1;
}

int avssl_frontend(const int16_t *pcm, int samples, float *frames)
{
#if AVSSL_KIND == 3
    if (samples < 1) return -1;
    const int count = (samples + AVSSL_HOP - 1) / AVSSL_HOP;
#else
    if (samples < (AVSSL_CENTER ? BEFORE + 1 : AVSSL_WINDOW)) return -1;
    const int count = 1 + (AVSSL_CENTER ? samples : samples - AVSSL_WINDOW) / AVSSL_HOP;
#endif
    if (count > AVSSL_MAX_FRAMES) return -1;
    const int16_t *at = pcm;
    float *frame = frames;
    avssl_stream_begin();
    while (avssl_stream_next(&at, pcm + samples, frame)) frame += AVSSL_FEATURES;
    while (avssl_stream_end(frame)) frame += AVSSL_FEATURES;
#if AVSSL_STANDARDISE == 1 /* the clip as a whole */
    standardise(frames, count, 0, AVSSL_FEATURES);
#elif AVSSL_STANDARDISE == 2 /* each coefficient */
    for (int i = 0; i < AVSSL_FEATURES; i++) standardise(frames, count, i, i + 1);
#endif
#if AVSSL_STANDARDISE != 0
    for (int t = 0; t < count; t++) scale(frames + t * AVSSL_FEATURES);
#endif
    return count;
}
#endif
