/* Forward pass of an exported avssl encoder. C99, no dynamic allocation, no dependency but libm.
 * Not reentrant: work buffers are static (their size: AVSSL_RAM_* in model_config.h). */
#ifndef AVSSL_EDGE_H
#define AVSSL_EDGE_H

#include <stddef.h>
#include <stdint.h>

#include "model_config.h"

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
#endif

/* CRC-32 (IEEE 802.3) of the int8 weights as they lie in flash; equals AVSSL_WEIGHTS_CRC32. */
uint32_t avssl_weights_crc32(void);

#endif
