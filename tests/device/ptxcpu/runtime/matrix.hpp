// Tensor cores: products of a warp's small matrices, and what loads their fragments.
#pragma once
#include "warp.hpp"

// Fragments as the PTX ISA lays them out over the lanes, registers of 32 bits that hold `per` of
// type In each.  Lane 4g + t holds of A (16 x K, by rows) the rows g and g + 8, of B (K x 8, by
// columns) the column g, of C and D (by rows) the columns 2t and 2t + 1.  TF32 ignores the bits of
// a float32 that it does not have.
static inline f32 element(u32 word, u32 half, f16) { return (f32)as<f16>(word >> 16 * half); }
static inline f32 element(u32 word, u32 half, bf16) { return (f32)as<bf16>(word >> 16 * half); }
static inline f32 element(u32 word, u32, f32) { return as<f32>(word & 0xffffe000); }

// The sum as tensor cores make it: every term is aligned to the largest and cut off below that
// one's last place, and so is the result.  M. Fasi, N. Higham, M. Mikaitis, S. Pranesh, "Numerical
// behavior of NVIDIA tensor cores", PeerJ Comput. Sci. 7:e330, 2021.  Some generations keep a bit
// or two more; here there is none, which bounds them all.
template <u32 N>
static f32 cut_sum(f32 start, const f64* products) {
    f64 plain = start, largest = std::fabs((f64)start);
    for (u32 i = 0; i < N; i++) plain += products[i], largest = std::max(largest, std::fabs(products[i]));
    if (!std::isfinite(plain) || largest == 0) return (f32)plain;
    s32 last_place = std::max(std::ilogb(largest), -126) - 23;
    f64 scale = std::ldexp(1.0, -last_place), sum = std::trunc(start * scale);
    for (u32 i = 0; i < N; i++) sum += std::trunc(products[i] * scale);
    f64 value = std::ldexp(sum, last_place);
    f32 nearest = (f32)value;
    bool away = std::isfinite(nearest) && std::fabs((f64)nearest) > std::fabs(value);
    return away ? std::nextafter(nearest, 0.0f) : nearest;
}

// mma.m16n8kK.  A step of the hardware adds half of the products: as compute capability 8.0 does,
// eight of 16 bits or four of TF32 (Fasi et al., table 1); later generations add more at once.
template <class In, u32 K>
static void multiply_matrices(u32* d, const u32* a, const u32* b, const u32* c) {
    constexpr u32 per = sizeof(In) == 2 ? 2 : 1, half = K / 2;  // a register covers `per` columns
    constexpr u32 words_a = 16 * K / 32 / per, words_b = 8 * K / 32 / per;
    static_assert(words_a + words_b + 4 <= 12);
    auto& all = shown();
    u32 me = lane();
    memcpy(all[me], a, 4 * words_a);
    memcpy(all[me] + words_a, b, 4 * words_b);
    warp_barrier(~0u);
    auto a_at = [&](u32 row, u32 k) {
        u32 word = (row >= 8) + 2 * (k >= half);
        return element(all[row % 8 * 4 + k % half / per][word], k % per, In());
    };
    auto b_at = [&](u32 k, u32 column) {
        u32 word = words_a + (k >= half);
        return element(all[column * 4 + k % half / per][word], k % per, In());
    };
    for (u32 i = 0; i < 4; i++) {
        u32 row = me / 4 + (i >= 2 ? 8 : 0), column = me % 4 * 2 + (i & 1);
        f32 sum = as<f32>(c[i]);
        for (u32 first = 0; first < K; first += half) {
            f64 products[half];
            for (u32 k = 0; k < half; k++)
                products[k] = (f64)a_at(row, first + k) * (f64)b_at(first + k, column);
            sum = cut_sum<half>(sum, products);
        }
        d[i] = bits(sum);
    }
    warp_barrier(~0u);
}

// mma.m8n8k4 of float64: multiply-adds one after the other, each rounded.
static void multiply_doubles(u64* d, u64 a, u64 b, const u64* c) {
    auto& all = shown();
    u32 me = lane();
    memcpy(all[me], &a, 8);
    memcpy(all[me] + 2, &b, 8);
    warp_barrier(~0u);
    auto shown_by = [&](u32 other, u32 word) {
        f64 value;
        memcpy(&value, all[other] + word, 8);
        return value;
    };
    for (u32 i = 0; i < 2; i++) {
        f64 sum = as<f64>(c[i]);
        for (u32 k = 0; k < 4; k++)
            sum = fma(shown_by(me / 4 * 4 + k, 0), shown_by((me % 4 * 2 + i) * 4 + k, 2), sum);
        d[i] = bits(sum);
    }
    warp_barrier(~0u);
}

// ldmatrix: lanes 8q .. 8q + 7 give the rows of matrix q, of 16 bytes; each lane gets two
// neighbours of a row, or of a column where the matrices are transposed.  A matrix is one wavefront
// where its rows lie in different banks, as if each of those lanes had loaded its row.
static void load_matrices(u32 count, bool transposed, u64 address, u32* d, int site) {
    auto& all = shown();
    u32 me = lane();
    all[me][0] = (u32)address;
    if (me < 8 * count) shared_at((u32)address, 16, false, site);
    warp_barrier(~0u);
    for (u32 q = 0; q < count; q++) {
        const u8* rows[8];
        for (u32 row = 0; row < 8; row++) rows[row] = BLOCK.shared + all[q * 8 + row][0];
        if (!transposed) {
            d[q] = load<u32>(rows[me / 4] + me % 4 * 4);
        } else {
            u32 row = me % 4 * 2, column = me / 4;
            d[q] = load<u16>(rows[row] + column * 2) | (u32)load<u16>(rows[row + 1] + column * 2) << 16;
        }
    }
    warp_barrier(~0u);
}
