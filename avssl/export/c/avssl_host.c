/* Runs the exported model on a workstation: a self-test, clips from standard input, a timing.
 *   avssl_host selftest             the test vector of test_vector.h; status 1 when anything differs
 *   avssl_host f32|int8 frames N    clips of N standardised frames, float32, from standard input -> float32 outputs
 *   avssl_host f32|int8 pcm N       clips of N samples, int16; int8 takes them as a device does, block by block
 *   avssl_host frontend pcm N       clips of N samples -> frames
 *   avssl_host bench N              milliseconds per forward pass of AVSSL_MAX_FRAMES frames, over N passes */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "avssl_edge.h"
#include "test_vector.h"

static float frames[AVSSL_MAX_FRAMES * AVSSL_FEATURES], out[AVSSL_OUTPUTS];
static int8_t narrow[AVSSL_MAX_FRAMES * AVSSL_FEATURES];

static int forward(const char *how, int count)
{
#if AVSSL_FLOAT
    if (!strcmp(how, "f32")) return avssl_forward_f32(frames, count, out);
#endif
    if (strcmp(how, "int8")) return -1;
    for (int t = 0; t < count; t++) avssl_quantise_frame(frames + t * AVSSL_FEATURES, narrow + t * AVSSL_FEATURES);
    return avssl_forward_int8(narrow, count, out);
}

#if AVSSL_HAS_FRONTEND && AVSSL_HAS_STREAM
#define BLOCK 100 /* samples: what a microphone gives at a time */

/* Sound to int8 frames with one float frame in memory. Returns their number. */
static int listen(const int16_t *pcm, int samples)
{
    float frame[AVSSL_FEATURES];
    int count = 0;
    avssl_stream_begin();
    for (int start = 0; start < samples; start += BLOCK) {
        const int16_t *at = pcm + start, *end = pcm + (start + BLOCK < samples ? start + BLOCK : samples);
        while (avssl_stream_next(&at, end, frame)) avssl_quantise_frame(frame, narrow + AVSSL_FEATURES * count++);
    }
    while (avssl_stream_end(frame)) avssl_quantise_frame(frame, narrow + AVSSL_FEATURES * count++);
    return count;
}
#endif

static float difference(const float *a, const float *b, int n)
{
    float most = 0;
    for (int i = 0; i < n; i++) {
        const float d = fabsf(a[i] - b[i]);
        if (!(d <= most)) most = d; /* NaN counts */
    }
    return most;
}

static int report(const char *what, float got, float allowed)
{
    printf("%-24s off by %g (allowed %g)\n", what, (double)got, (double)allowed);
    return !(got <= allowed);
}

static int selftest(void)
{
    int failed = avssl_weights_crc32() != AVSSL_WEIGHTS_CRC32;
    printf("weights CRC-32           %s\n", failed ? "differs" : "agrees");
#if AVSSL_HAS_FRONTEND
    if (avssl_frontend(test_pcm, AVSSL_TEST_SAMPLES, frames) != AVSSL_TEST_FRAMES) return 1;
    failed |= report("front end", difference(frames, test_frames, AVSSL_TEST_FRAMES * AVSSL_FEATURES), 2e-3f);
#endif
    memcpy(frames, test_frames, sizeof test_frames);
#if AVSSL_FLOAT
    if (forward("f32", AVSSL_TEST_FRAMES)) return 1;
    failed |= report("float logits", difference(out, test_logits_f32, AVSSL_OUTPUTS), 1e-4f);
#endif
    if (forward("int8", AVSSL_TEST_FRAMES)) return 1;
    failed |= report("int8 logits", difference(out, test_logits_int8, AVSSL_OUTPUTS), AVSSL_TEST_INT8_TOLERANCE);
    return failed;
}

static int bench(int passes)
{
    static const char *hows[] = {"f32", "int8"};
    for (int h = AVSSL_FLOAT ? 0 : 1; h < 2; h++) {
        const clock_t start = clock();
        for (int i = 0; i < passes; i++)
            if (forward(hows[h], AVSSL_MAX_FRAMES)) return 1;
        printf("%s %.4f\n", hows[h], 1e3 * (double)(clock() - start) / CLOCKS_PER_SEC / passes);
    }
    return 0;
}

int main(int argc, char **argv)
{
    if (argc == 2 && !strcmp(argv[1], "selftest")) return selftest();
    if (argc == 3 && !strcmp(argv[1], "bench")) return bench(atoi(argv[2]));
    if (argc != 4) return 2;
    const size_t n = (size_t)atoi(argv[3]);
    if (!strcmp(argv[2], "frames") && n <= AVSSL_MAX_FRAMES) {
        while (fread(frames, sizeof(float) * AVSSL_FEATURES, n, stdin) == n) {
            if (forward(argv[1], (int)n)) return 1;
            fwrite(out, sizeof out, 1, stdout);
        }
        return 0;
    }
#if AVSSL_HAS_FRONTEND
    if (!strcmp(argv[2], "pcm")) {
        int16_t *pcm = malloc(n * sizeof *pcm);
        if (!pcm) return 1;
        while (fread(pcm, sizeof *pcm, n, stdin) == n) {
#if AVSSL_HAS_STREAM
            if (!strcmp(argv[1], "int8")) {
                if (avssl_forward_int8(narrow, listen(pcm, (int)n), out)) return 1;
                fwrite(out, sizeof out, 1, stdout);
                continue;
            }
#endif
            const int count = avssl_frontend(pcm, (int)n, frames);
            if (count < 0) return 1;
            if (!strcmp(argv[1], "frontend")) {
                fwrite(frames, sizeof(float) * AVSSL_FEATURES, (size_t)count, stdout);
            } else {
                if (forward(argv[1], count)) return 1;
                fwrite(out, sizeof out, 1, stdout);
            }
        }
        free(pcm);
        return 0;
    }
#endif
    return 2;
}
