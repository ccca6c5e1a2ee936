/* Forward pass of an exported avssl encoder. C99, no dynamic allocation, no dependency but libm.
 * Not reentrant: work buffers are static (their size: AVSSL_RAM_* in model_config.h). */
#ifndef AVSSL_EDGE_H
#define AVSSL_EDGE_H

#include <stddef.h>
#include <stdint.h>

#include "model_config.h"

#ifdef __cplusplus
extern "C" {
#endif

/* frames: count x AVSSL_FEATURES floats, standardised; out: AVSSL_OUTPUTS floats.
 * All return 0, or -1 when count is not in 1 ... AVSSL_MAX_FRAMES. */
int avssl_forward_f32(const float *frames, int count, float *out);

/* The same with int8 weights and activations. Quantise each frame once, then 1 byte per number is all that is kept. */
void avssl_quantise_frame(const float *frame, int8_t *out);
int avssl_forward_int8(const int8_t *frames, int count, float *out);

#if AVSSL_HAS_FRONTEND
/* Mono 16-bit PCM at AVSSL_RATE -> standardised frames. Returns their number, or -1 when there is less than one frame or
 * more than AVSSL_MAX_FRAMES. */
int avssl_frontend(const int16_t *pcm, int samples, float *frames);

#if AVSSL_HAS_STREAM
/* The same frames, one by one while the sound arrives: of the clip only its last AVSSL_WINDOW samples are kept.
 *
 *     int count = 0;
 *     avssl_stream_begin();
 *     while (record(&block, &length))
 *         for (const int16_t *at = block; avssl_stream_next(&at, block + length, frame);)
 *             avssl_quantise_frame(frame, narrow + AVSSL_FEATURES * count++);
 *     while (avssl_stream_end(frame)) avssl_quantise_frame(frame, narrow + AVSSL_FEATURES * count++);
 *     if (avssl_forward_int8(narrow, count, out)) ... too short ...
 *
 * next: takes samples from *at on, up to `end` or to those that complete a frame; 1 when it wrote one, 0 when all samples
 * are taken. end: 1 for each frame that reaches over the end of the clip, then 0. AVSSL_MAX_FRAMES is the most that a
 * clip gives: sound behind it is dropped. Without AVSSL_HAS_STREAM the frames depend on the clip as a whole. */
void avssl_stream_begin(void);
int avssl_stream_next(const int16_t **at, const int16_t *end, float *frame);
int avssl_stream_end(float *frame);
#endif
#endif

/* CRC-32 (IEEE 802.3) of the int8 weights as they lie in flash; equals AVSSL_WEIGHTS_CRC32. */
uint32_t avssl_weights_crc32(void);

#ifdef __cplusplus
}
#endif

#endif
