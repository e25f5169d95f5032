// Numbers as PTX means them: registers hold bits, instructions say how to read them.
#pragma once
#include <algorithm>
#include <bit>
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;
typedef int8_t s8;
typedef int16_t s16;
typedef int32_t s32;
typedef int64_t s64;
typedef unsigned __int128 u128;
typedef __int128 s128;
typedef _Float16 f16;
typedef float f32;
typedef double f64;

// bfloat16 is the upper half of a float32.
struct bf16 {
    u16 upper;
    bf16() = default;
    explicit bf16(f32 value) {
        u32 bits = std::bit_cast<u32>(value);
        bool nan = (bits & 0x7fffffff) > 0x7f800000;
        upper = nan ? 0x7fff : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;  // to nearest, ties to even
    }
    operator f32() const { return std::bit_cast<f32>((u32)upper << 16); }
};

template <class T>
constexpr bool is_float = std::is_floating_point_v<T> || std::is_same_v<T, f16> || std::is_same_v<T, bf16>;

// The value of type T in a register, and back.
template <class T>
static inline T as(u64 bits) {
    if constexpr (std::is_same_v<T, bool>) return bits != 0;
    else if constexpr (sizeof(T) == 2 && is_float<T>) return std::bit_cast<T>((u16)bits);
    else if constexpr (std::is_same_v<T, f32>) return std::bit_cast<T>((u32)bits);
    else if constexpr (std::is_same_v<T, f64>) return std::bit_cast<T>(bits);
    else return (T)bits;
}
template <class T>
static inline auto bits(T value) {
    if constexpr (sizeof(T) == 2 && is_float<T>) return std::bit_cast<u16>(value);
    else if constexpr (std::is_same_v<T, f32>) return std::bit_cast<u32>(value);
    else if constexpr (std::is_same_v<T, f64>) return std::bit_cast<u64>(value);
    else return value;
}
template <class T>
using Register = decltype(bits(T()));
template <class T>
static inline T load(const u8* from) {
    T value;
    memcpy(&value, from, sizeof value);
    return value;
}
template <class T>
static inline void store(u8* to, u64 value) {
    T narrow = (T)value;
    memcpy(to, &narrow, sizeof narrow);
}

// ---------------------------------------------------------------------- floating point

template <class T>
static inline T flush(T x) {  // .ftz
    return std::fabs(x) < FLT_MIN ? std::copysign(T(0), x) : x;
}
static inline f32 flushed(u32 bits) {
    return flush(as<f32>(bits));
}
template <class T>
static inline T saturate(T x) {  // .sat: to [0, 1], a NaN to 0
    return x > T(0) ? (x < T(1) ? x : T(1)) : T(0);
}
template <class T>
static inline T fused(T a, T b, T c) {
    if constexpr (sizeof(T) == 2) return (T)(f32)std::fma((f64)(f32)a, (f64)(f32)b, (f64)(f32)c);
    else return std::fma(a, b, c);
}
// fma from registers to a register: .ftz is of float32 alone.
template <class T, bool FTZ, bool SAT>
static inline auto fused_registers(Register<T> a, Register<T> b, Register<T> c) {
    constexpr bool flushes = FTZ && std::is_same_v<T, f32>;
    T d;
    if constexpr (flushes) d = fused<T>(flushed(a), flushed(b), flushed(c));
    else d = fused<T>(as<T>(a), as<T>(b), as<T>(c));
    if constexpr (SAT) d = saturate(d);
    if constexpr (flushes) d = flush(d);
    return bits(d);
}
template <class T>
static inline bool is_nan(T x) {
    return x != x;
}
// The other operand where one is a NaN; -0 is below +0.
template <class T>
static inline T smaller(T a, T b) {
    if constexpr (!is_float<T>) return std::min(a, b);
    else if (is_nan(a) || is_nan(b)) return is_nan(a) ? b : a;
    else if (a == b) return std::signbit((f32)a) ? a : b;
    else return a < b ? a : b;
}
template <class T>
static inline T larger(T a, T b) {
    if constexpr (!is_float<T>) return std::max(a, b);
    else if (is_nan(a) || is_nan(b)) return is_nan(a) ? b : a;
    else if (a == b) return std::signbit((f32)a) ? b : a;
    else return a > b ? a : b;
}
template <class T>
static inline T nan_if_any(T a, T b, T otherwise) {  // min.NaN, max.NaN
    return is_nan(a) || is_nan(b) ? std::bit_cast<T>(bits(T(NAN))) : otherwise;
}
// To an integer: out of range to the nearest end, a NaN to 0.
template <class To, class From>
static inline To to_integer(From x) {
    f64 wide = (f64)x;
    if (std::isnan(wide)) return 0;
    f64 top = std::ldexp(1.0, (int)sizeof(To) * 8 - std::is_signed_v<To>);
    if (wide >= top) return std::numeric_limits<To>::max();
    if (wide < (std::is_signed_v<To> ? -top : 0.0)) return std::numeric_limits<To>::min();
    return (To)wide;
}
// A float32 with 10 bits of mantissa, to nearest, ties away from zero.
static inline u32 to_tf32(f32 x) {
    u32 bits = std::bit_cast<u32>(x);
    if ((bits & 0x7f800000) == 0x7f800000) return bits;
    return (bits + 0x1000) & 0xffffe000;
}

// ---------------------------------------------------------------------- integers

template <class T>
static inline T saturate_signed(s64 x) {
    s64 low = std::numeric_limits<T>::min(), high = std::numeric_limits<T>::max();
    return (T)std::clamp(x, low, high);
}
template <class T>
static inline T high_half(T a, T b) {
    typedef std::conditional_t<std::is_signed_v<T>, s128, u128> wide;
    return (T)((wide)a * (wide)b >> sizeof(T) * 8);
}
template <class T>
static inline T shift_left(T x, u32 n) {
    return n >= sizeof(T) * 8 ? T(0) : (T)(x << n);
}
template <class T>
static inline T shift_right(T x, u32 n) {
    u32 width = sizeof(T) * 8;
    return n >= width ? (x < 0 ? T(-1) : T(0)) : (T)(x >> n);
}
// shf: the upper (left) or lower (right) half of the pair b:a, shifted.
static inline u32 funnel_left(u32 a, u32 b, u32 n) {
    return n == 0 ? b : n >= 32 ? a : b << n | a >> (32 - n);
}
static inline u32 funnel_right(u32 a, u32 b, u32 n) {
    return n == 0 ? a : n >= 32 ? b : a >> n | b << (32 - n);
}
static inline u32 lop3(u32 a, u32 b, u32 c, int table) {
    u32 result = 0;
    for (int row = 0; row < 8; row++)
        if (table >> row & 1)
            result |= (row & 4 ? a : ~a) & (row & 2 ? b : ~b) & (row & 1 ? c : ~c);
    return result;
}
static inline u32 permute(u32 a, u32 b, u32 selector) {
    u64 bytes = (u64)b << 32 | a;
    u32 result = 0;
    for (int i = 0; i < 4; i++) {
        u32 code = selector >> 4 * i & 15;
        u8 byte = bytes >> 8 * (code & 7);
        if (code & 8) byte = byte & 0x80 ? 0xff : 0;  // the sign, repeated
        result |= (u32)byte << 8 * i;
    }
    return result;
}
// len bits of x from pos on, extended with zeros, or with the sign of the topmost one that exists.
template <class T>
static inline T field(T x, u32 pos, u32 len) {
    u32 width = sizeof(T) * 8;
    pos &= 255, len &= 255;
    typedef std::make_unsigned_t<T> raw;
    bool sign = false;
    if (std::is_signed_v<T> && len) sign = (raw)x >> std::min(pos + len - 1, width - 1) & 1;
    raw result = 0;
    for (u32 i = 0; i < width; i++) {
        bool bit = i < len && pos + i < width ? (raw)x >> (pos + i) & 1 : sign;
        result |= (raw)bit << i;
    }
    return (T)result;
}
template <class T>
static inline T insert(T from, T into, u32 pos, u32 len) {
    pos &= 255, len &= 255;
    for (u32 i = 0; i < len && pos + i < sizeof(T) * 8; i++) {
        T bit = (T)1 << (pos + i);
        into = (T)((into & ~bit) | ((from >> i & 1) ? bit : 0));
    }
    return into;
}
template <class T>
static inline u32 leading_zeros(T x) {
    return std::countl_zero(x);
}
template <class T>
static inline T reversed(T x) {
    T result = 0;
    for (u32 i = 0; i < sizeof(T) * 8; i++) result = (T)(result << 1 | (x >> i & 1));
    return result;
}
