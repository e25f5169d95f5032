// What the lanes of a warp do together: shuffles and votes.
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
