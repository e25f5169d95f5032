// What the lanes of a warp do together: shuffles, votes, products of small matrices.
#pragma once
#include "memory.hpp"

// What each lane shows the others between two of the warp's barriers.
static u32 SHOWN[32][32][12];
static inline auto& shown() { return SHOWN[self().index / 32]; }
static inline u32 lane() { return self().index & 31; }

// shfl: the lane that is read, and whether it is inside the segment, by PTX's own pseudo-code.
enum Shuffle { UP, DOWN, BUTTERFLY, INDEX };
static u32 shuffle(Shuffle mode, u32 value, u32 by, u32 clamp_and_mask, u32 members, bool& inside) {
    s32 me = lane(), segment = clamp_and_mask >> 8 & 31, clamp = clamp_and_mask & 31, b = by & 31;
    s32 last = (me & segment) | (clamp & ~segment), first = me & segment, from = me;
    switch (mode) {
        case UP: from = me - b, inside = from >= last; break;
        case DOWN: from = me + b, inside = from <= last; break;
        case BUTTERFLY: from = me ^ b, inside = from <= last; break;
        case INDEX: from = first | (b & ~segment), inside = from <= last; break;
    }
    if (!inside) from = me;
    shown()[me][0] = value;
    warp_barrier(members);
#ifdef CHECKED
    if (!(members >> (from & 31) & 1)) fail("a shuffle reads a lane outside its mask");
#endif
    u32 result = shown()[from & 31][0];
    warp_barrier(members);
    return result;
}
static u32 ballot(bool vote, u32 members) {
    shown()[lane()][0] = vote;
    warp_barrier(members);
    u32 result = 0;
    for (u32 i = 0; i < 32; i++)
        if (members >> i & 1 && shown()[i][0]) result |= 1u << i;
    warp_barrier(members);
    return result;
}

// mma.m16nNkK: fragments as the PTX ISA lays them out over the lanes.  In: type of A and B, in
// registers of 32 bits that hold `per` of them each.  Lane 4g + t holds of A (16 x K, by rows) the
// rows g and g + 8, of B (K x 8, by columns) the column g, of C and D the columns 2t and 2t + 1.
static inline f32 element(u32 word, u32 half, f16) { return (f32)as<f16>(word >> 16 * half); }
static inline f32 element(u32 word, u32 half, bf16) { return (f32)as<bf16>(word >> 16 * half); }
static inline f32 element(u32 word, u32, f32) { return as<f32>(word & 0xffffe000); }

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
        for (u32 k = 0; k < K; k++) sum += a_at(row, k) * b_at(k, column);
        d[i] = bits(sum);
    }
    warp_barrier(~0u);
}

// ldmatrix: lanes 8q .. 8q + 7 give the rows of matrix q; each lane gets two neighbours of a row,
// or of a column where the matrices are transposed.
static void load_matrices(u32 count, bool transposed, u64 address, u32* d, int site) {
    auto& all = shown();
    u32 me = lane();
    all[me][0] = (u32)address;
    warp_barrier(~0u);
    for (u32 q = 0; q < count; q++) {
        if (!transposed) {
            d[q] = load<u32>(shared_at(all[q * 8 + me / 4][0] + me % 4 * 4, 4, false, site));
        } else {
            u32 row = me % 4 * 2, column = me / 4;
            u16 low = load<u16>(shared_at(all[q * 8 + row][0] + column * 2, 2, false, site));
            u16 high = load<u16>(shared_at(all[q * 8 + row + 1][0] + column * 2, 2, false, site));
            d[q] = low | (u32)high << 16;
        }
    }
    warp_barrier(~0u);
}
