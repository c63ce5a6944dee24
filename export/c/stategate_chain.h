/* The chain of hashes; contract/chain.py says what it is, and what it is not.
 *
 * Integers alone, so that every compiler and every width of vectors gives the same.
 */
#ifndef STATEGATE_CHAIN_H
#define STATEGATE_CHAIN_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the chain of hashes is over little-endian words"
#endif

#define STATEGATE_CHAIN_HALF 128u /* words of half a block */

/* Products of the even words, 64 bits each. gcc finds the instruction in no loop. */
#if defined(STATEGATE_PORTABLE)
/* one product after the other */
#elif defined(__AVX512F__)
#include <immintrin.h>
#define STATEGATE_CHAIN_WIDTH 64
#define STATEGATE_CHAIN_PRODUCTS(a, b) _mm512_mul_epu32((__m512i)(a), (__m512i)(b))
#elif defined(__AVX2__)
#include <immintrin.h>
#define STATEGATE_CHAIN_WIDTH 32
#define STATEGATE_CHAIN_PRODUCTS(a, b) _mm256_mul_epu32((__m256i)(a), (__m256i)(b))
#elif defined(__SSE2__)
#include <emmintrin.h>
#define STATEGATE_CHAIN_WIDTH 16
#define STATEGATE_CHAIN_PRODUCTS(a, b) _mm_mul_epu32((__m128i)(a), (__m128i)(b))
#endif

#ifdef STATEGATE_PORTABLE
typedef uint32_t stategate_word;
#else
typedef uint32_t stategate_word __attribute__((may_alias, aligned(1)));
#endif
#ifdef STATEGATE_CHAIN_WIDTH
typedef uint32_t stategate_words __attribute__((vector_size(STATEGATE_CHAIN_WIDTH), may_alias, aligned(1)));
typedef uint64_t stategate_sums __attribute__((vector_size(STATEGATE_CHAIN_WIDTH)));
#endif

static inline uint64_t stategate_mix(uint64_t z)
{
    z = (z ^ (z >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94D049BB133111EB);
    return z ^ (z >> 31);
}

/* The sum of products of a block; each half has this many words. */
static inline uint64_t stategate_chain_sum(const stategate_word *a, size_t half)
{
    static const uint32_t keys_a[STATEGATE_CHAIN_HALF] = {
        0x7b1dcdafu, 0xa1b965f4u, 0x8009454fu, 0x724c81ecu, 0x51a8749bu, 0x747ea2eau, 0x1f4532e1u, 0xc916ab3cu,
        0x41c98ac3u, 0x368cb0a6u, 0x3cb13d09u, 0x055bdef6u, 0xe0bbdb7bu, 0x983aa92fu, 0x00cc4d19u, 0x971d80abu,
        0x75521255u, 0x2b7f7f86u, 0x83914f64u, 0x5a4485acu, 0x100b9ed7u, 0x1825f10du, 0x0dca2f6au, 0x7bd2634cu,
        0xf5407269u, 0xdb4c4f7bu, 0x92233300u, 0x7de1d510u, 0xb45c6316u, 0x0f4d3872u, 0x72f3454fu, 0xa8e40225u,
        0x4963bab0u, 0x111ac529u, 0x599dc6f7u, 0x93d108c3u, 0x81daa383u, 0xb43343a1u, 0xcbe531dfu, 0x24851729u,
        0xa792922au, 0x918175ceu, 0x302278a8u, 0x7019e937u, 0x52ebf438u, 0x0a691e37u, 0x763e79adu, 0x743aae49u,
        0xb1a1f2e1u, 0x4f4f52dau, 0xa71a5eb1u, 0xb6513356u, 0xd4367d77u, 0x23ce3c71u, 0x0043c714u, 0x844f1705u,
        0xdd9e0ec1u, 0x82bb9698u, 0xcbc87656u, 0xa17b3c8fu, 0x1d5c5d7bu, 0x1cbbf170u, 0x29a88f1du, 0xb8bb18fbu,
        0x6c6ad50eu, 0x3e46f143u, 0x99a4fc72u, 0x8a8bb259u, 0xaed5bdfcu, 0x8d8553c0u, 0x8c4064c0u, 0x1d86a66fu,
        0x03c367a8u, 0x1ec11786u, 0xee954551u, 0x0555c6dfu, 0x72403c08u, 0x1bfa1137u, 0xb5c554e1u, 0x7441bcd2u,
        0xb48216e8u, 0x40bf0048u, 0xa0ee15b4u, 0x96a7eea1u, 0x98f8a0fdu, 0x0e3335a7u, 0xebcb1ccau, 0x7453424eu,
        0x05234c6du, 0xa6f2b568u, 0x39ac2c65u, 0x14d23c6fu, 0x57e00235u, 0xc6589373u, 0x6dd3aee7u, 0xc376cc66u,
        0x897b2307u, 0x6343e5c3u, 0x9eba2304u, 0x6bd1a506u, 0x00a05f50u, 0x0385cdbcu, 0xd78101dau, 0x6ca266acu,
        0xbb2dc749u, 0x8493cd8cu, 0x336bd182u, 0x3741519bu, 0xb109ac94u, 0x813cb177u, 0x0f7c9370u, 0xcde95015u,
        0xfb354461u, 0x64ed82f2u, 0x41ce6808u, 0xc9643c37u, 0xa70fa9c0u, 0xa4005729u, 0x927b52d8u, 0x42f6791fu,
        0xcab4adaeu, 0xc5ab61d6u, 0x79d452d9u, 0x0085641cu, 0x157c85d0u, 0x4e08f3a3u, 0x06c41fc2u, 0x45a39c19u,
    };
    static const uint32_t keys_b[STATEGATE_CHAIN_HALF] = {
        0xe220a839u, 0x6e789e6au, 0x06c45d18u, 0xf88bb8a8u, 0x1b39896au, 0x53cb9f0cu, 0x2c829abeu, 0xc584133au,
        0x3ee57890u, 0xf3b8488cu, 0x657eecddu, 0xc2d326e0u, 0x8621a03fu, 0x8e1f7555u, 0xb54e0f16u, 0x84bb3f97u,
        0x7d29825cu, 0xc3cf1710u, 0x3466e9a0u, 0xd81a8d2bu, 0xdb01602bu, 0xa9038a92u, 0xedf5f1d9u, 0x54496ad6u,
        0xdd7c01d4u, 0x935e82f1u, 0x69b82ebcu, 0x40d29eb5u, 0xa2f09dabu, 0xee521d7au, 0xf16952eeu, 0x377d35deu,
        0x0c7de806u, 0x05582d37u, 0xd254741fu, 0x69630f75u, 0x417ef961u, 0x3c3c41a3u, 0x6e19905du, 0x4fa9fa73u,
        0x84eb4454u, 0x134f7096u, 0x07dc930bu, 0x12c015a9u, 0xcc06c316u, 0xecee6563u, 0x3e84ecb1u, 0x690ed476u,
        0x774615d7u, 0x22b353f0u, 0xe3ddd86bu, 0xdf268adeu, 0x2098eb73u, 0x03d68453u, 0xc952c562u, 0x9b196bcau,
        0x30260345u, 0xcf448a58u, 0xf4a578dcu, 0xbfdeaed9u, 0xed79402du, 0x55f070abu, 0x3e00a349u, 0xe255b237u,
        0x2a7b67afu, 0x466d5e7fu, 0x42375cb3u, 0x8c8a1f14u, 0x32fcab5du, 0x9e60398cu, 0xee89ccebu, 0xdb021594u,
        0x5ccde782u, 0xf1bcbc6au, 0xef054fceu, 0xdf82012du, 0x292566ffu, 0xc4dd302au, 0xd85f219du, 0x6a27ff80u,
        0x96a573e9u, 0x46a9fdacu, 0x3dd12464u, 0x451e5212u, 0x56e4398au, 0x7b7dc216u, 0xc679ee0bu, 0x928d6f2du,
        0x1b389942u, 0x8086d193u, 0x21c6e266u, 0xd9dccac4u, 0x91cd6420u, 0x77fc607du, 0x05b8abe2u, 0x12f6436au,
        0x64952424u, 0xee8c2bafu, 0xdc4c613du, 0x3505b779u, 0x8176daf8u, 0x8bd8ff7au, 0x1a764a3cu, 0xbe4d15bfu,
        0xa85e1f38u, 0x56759a96u, 0xf3a9bce7u, 0x365b1501u, 0x1f7a44a6u, 0x3521d628u, 0x6a77afabu, 0x179642d8u,
        0x5ef102a8u, 0xf51c5047u, 0xc58427f0u, 0xfad8fc45u, 0xcf8682f9u, 0x7e1b3b75u, 0x992dd867u, 0x7fbd5db1u,
        0x370595aau, 0xb1392dbdu, 0x9fea7dfcu, 0x40b12b12u, 0xa192afe3u, 0xc847729fu, 0x6f1384a3u, 0x12d05c40u,
    };
    const stategate_word *b = a + half;
    uint64_t sum = 0;
    size_t done = 0;
#ifdef STATEGATE_CHAIN_WIDTH
    const size_t width = STATEGATE_CHAIN_WIDTH / sizeof(uint32_t);
    done = half - half % width;
    stategate_sums even = {0}, odd = {0};
    for (size_t i = 0; i < done; i += width) {
        const stategate_words keyed_a
            = *(const stategate_words *)(a + i) + *(const stategate_words *)(keys_a + i);
        const stategate_words keyed_b
            = *(const stategate_words *)(b + i) + *(const stategate_words *)(keys_b + i);
        even += (stategate_sums)STATEGATE_CHAIN_PRODUCTS(keyed_a, keyed_b);
        odd += (stategate_sums)STATEGATE_CHAIN_PRODUCTS(
            (stategate_sums)keyed_a >> 32, (stategate_sums)keyed_b >> 32);
    }
    even += odd;
    for (size_t j = 0; j < width / 2; ++j) {
        sum += even[j];
    }
#endif
    for (size_t i = done; i < half; ++i) {
        const uint32_t keyed_a = a[i] + keys_a[i], keyed_b = b[i] + keys_b[i];
        sum += (uint64_t)keyed_a * keyed_b;
    }
    return sum;
}

/* The chain after some bytes; no bytes leave it as it is. */
static inline uint64_t stategate_chained(uint64_t chain, const void *data, size_t bytes)
{
    const size_t block = 8u * STATEGATE_CHAIN_HALF;
    const char *at = (const char *)data;
    uint32_t words[2u * STATEGATE_CHAIN_HALF];
    for (; bytes >= block; bytes -= block) {
#ifdef STATEGATE_PORTABLE
        (void)memcpy(words, at, block);
        const uint64_t sum = stategate_chain_sum(words, STATEGATE_CHAIN_HALF);
#else
        const uint64_t sum = stategate_chain_sum((const stategate_word *)(const void *)at, STATEGATE_CHAIN_HALF);
#endif
        chain = stategate_mix(chain ^ (sum + block));
        at = &at[block];
    }
    if (bytes > 0u) {
        const size_t half = (bytes + 7u) / 8u;
        words[2u * half - 2u] = 0u; /* what the bytes leave of the last two */
        words[2u * half - 1u] = 0u;
        (void)memcpy(words, at, bytes);
        chain = stategate_mix(chain ^ (stategate_chain_sum(words, half) + bytes));
    }
    return chain;
}

#endif
