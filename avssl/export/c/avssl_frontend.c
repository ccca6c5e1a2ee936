/* PCM to standardised frames, with the tables of frontend.h. */
#include "avssl_edge.h"

#if AVSSL_HAS_FRONTEND
#include <math.h>

#include "frontend.h"

#define PCM_SCALE (1.0f / 32768.0f)

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
static float sample(const int16_t *pcm, int samples, int at)
{
    if (at < 0) at = -at;
    if (at >= samples) at = 2 * (samples - 1) - at;
    return (float)pcm[at] * PCM_SCALE;
}

static float decibel(float energy) { return 10 * log10f(energy > AVSSL_FLOOR ? energy : AVSSL_FLOOR); }

static void one_frame(const int16_t *pcm, int samples, int start, float *out)
{
    for (int i = 0; i < AVSSL_N_FFT; i++) {
        re[i] = sample(pcm, samples, start + i) * window[i];
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
#endif

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

int avssl_frontend(const int16_t *pcm, int samples, float *frames)
{
#if AVSSL_KIND == 3 /* raw segments, zeros at the end */
    const int count = (samples + AVSSL_HOP - 1) / AVSSL_HOP;
    if (samples < 1 || count > AVSSL_MAX_FRAMES) return -1;
    for (int i = 0; i < count * AVSSL_HOP; i++) frames[i] = i < samples ? (float)pcm[i] * PCM_SCALE : 0;
#else
    const int before = AVSSL_CENTER ? AVSSL_N_FFT / 2 : 0;
    if (samples < (AVSSL_CENTER ? AVSSL_N_FFT / 2 + 1 : AVSSL_N_FFT)) return -1;
    const int count = 1 + (AVSSL_CENTER ? samples : samples - AVSSL_N_FFT) / AVSSL_HOP;
    if (count > AVSSL_MAX_FRAMES) return -1;
    for (int t = 0; t < count; t++) one_frame(pcm, samples, t * AVSSL_HOP - before, frames + t * AVSSL_FEATURES);
#endif
#if AVSSL_STANDARDISE == 1 /* the clip as a whole */
    standardise(frames, count, 0, AVSSL_FEATURES);
#elif AVSSL_STANDARDISE == 2 /* each coefficient */
    for (int i = 0; i < AVSSL_FEATURES; i++) standardise(frames, count, i, i + 1);
#endif
#if AVSSL_HAS_STATISTICS /* fixed, from training */
    for (int t = 0; t < count; t++)
        for (int i = 0; i < AVSSL_FEATURES; i++) {
            float *x = &frames[t * AVSSL_FEATURES + i];
            *x = (*x - feature_shift[i]) * feature_gain[i];
        }
#endif
    return count;
}
#endif
