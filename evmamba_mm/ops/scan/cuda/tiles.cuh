#pragma once

#include "common.cuh"

// Tiles of steps between device memory and shared memory, and what the steps
// hold once they are there.

// Place of a projected column in a row of shared memory.
__device__ __forceinline__ int proj_column(int c) {
  if constexpr (N == NP) return c;
  return c < N ? c : c < 2 * N ? NP + c - N : 2 * (NP - N) + c;
}

// A tile of projections on its way to shared memory, 16 bytes at a time.
struct ProjTile {
  static constexpr int WIDTH = 16 / sizeof(io_t), PER_STEP = P / WIDTH;
  static constexpr int TOTAL = TILE * PER_STEP;
  static constexpr int COUNT = (TOTAL + THREADS - 1) / THREADS;
  uint4 values[COUNT];

  __device__ __forceinline__ void fetch(
      const io_t* proj, i64 stride, const int* tokens) {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
      const int e = threadIdx.x + i * THREADS;
      const int t = e / PER_STEP, c = e % PER_STEP * WIDTH;
      const int token = e < TOTAL ? tokens[t] : -1;
      values[i] =
          token >= 0
              ? *reinterpret_cast<const uint4*>(proj + token * stride + c)
              : uint4{};
    }
  }

  // What pads the rows was zeroed once.
  __device__ __forceinline__ void put(float* rows) const {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
      const int e = threadIdx.x + i * THREADS;
      const int t = e / PER_STEP, c = e % PER_STEP * WIDTH;
      if (e >= TOTAL) continue;
      float* row = rows + t * PROJ_ROW;
      const io_t* x = reinterpret_cast<const io_t*>(&values[i]);
      if constexpr (N == NP) {
#pragma unroll
        for (int k = 0; k < WIDTH; k += 4)
          *reinterpret_cast<float4*>(row + c + k) = make_float4(
              to_float(x[k]), to_float(x[k + 1]), to_float(x[k + 2]),
              to_float(x[k + 3]));
      } else {
        for (int k = 0; k < WIDTH; ++k)
          if (c + k < 2 * N + R)
            row[proj_column(c + k)] = to_float(x[k]);
      }
    }
  }
};

template <int BYTES> struct Words;
template <> struct Words<2> { typedef unsigned short type; };
template <> struct Words<4> { typedef unsigned type; };
template <> struct Words<16> { typedef uint4 type; };

// A warp's channels of a tile of a map, on their way between device memory
// and shared memory: 16 bytes at a time where rows allow it. Only the warp
// itself touches its channels.
struct MapTile {
  // Words, since a vector of halves would be assembled, and so waited for,
  // as soon as it is loaded.
  static constexpr int FULL = 16 / sizeof(io_t);
  static constexpr int WIDTH =
      D % FULL == 0 && WARP_D % FULL == 0 ? FULL : 1;
  static constexpr int PER_STEP = WARP_D / WIDTH;
  static constexpr int TOTAL = TILE * PER_STEP;
  static constexpr int COUNT = (TOTAL + 31) / 32;
  typedef typename Words<sizeof(io_t) * WIDTH>::type Vector;
  Vector values[COUNT];

  __device__ __forceinline__ void fetch(
      const io_t* map, const int* tokens, int channel0, const Lane& me) {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
      const int e = me.lane + 32 * i, t = e / PER_STEP;
      const int d = channel0 + me.warp * WARP_D + e % PER_STEP * WIDTH;
      const int token = e < TOTAL ? tokens[t] : -1;
      values[i] = token >= 0 && d < D
                      ? *reinterpret_cast<const Vector*>(
                            map + (i64)token * D + d)
                      : Vector{};
    }
  }

  __device__ __forceinline__ void put(
      io_t (*rows)[BLOCK_D], const Lane& me) const {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
      const int e = me.lane + 32 * i, t = e / PER_STEP;
      const int at = me.warp * WARP_D + e % PER_STEP * WIDTH;
      if (e < TOTAL) *reinterpret_cast<Vector*>(&rows[t][at]) = values[i];
    }
  }

  __device__ static __forceinline__ void write(
      const io_t (*rows)[BLOCK_D], io_t* map, const int* tokens,
      int channel0, const Lane& me) {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
      const int e = me.lane + 32 * i, t = e / PER_STEP;
      const int at = me.warp * WARP_D + e % PER_STEP * WIDTH;
      const int token = e < TOTAL ? tokens[t] : -1, d = channel0 + at;
      if (token >= 0 && d < D)
        *reinterpret_cast<Vector*>(map + (i64)token * D + d) =
            *reinterpret_cast<const Vector*>(&rows[t][at]);
    }
  }
};

// Weights of one channel's step size.
struct StepSize {
  float weight[RP], bias;

  __device__ StepSize(const float* w, const float* b, int set, int d) {
    const bool there = d < D;
    bias = there ? b[set * D + d] : 0.f;
#pragma unroll
    for (int r = 0; r < RP; ++r)
      weight[r] = there && r < R ? w[(i64)(set * D + d) * R + r] : 0.f;
  }

  // Before softplus, from a row of B, C, dt.
  __device__ __forceinline__ float raw(const float* row) const {
    float x = bias, dt[RP];
    load_row(dt, row + 2 * NP);
#pragma unroll
    for (int r = 0; r < R; ++r) x = fmaf(weight[r], dt[r], x);
    return x;
  }
};

__device__ __forceinline__ void clear(float* p, int count) {
  for (int i = threadIdx.x; i < count; i += THREADS) p[i] = 0.f;
}

// Step sizes of a thread's channel at its steps, and what lies there on a
// map. Everything is read before anything is written: the compiler must take
// them for the same memory, and would wait at every step.
struct Expanded {
  float delta[STEPS], x[STEPS];

  __device__ __forceinline__ Expanded(
      const float* proj, const io_t (*rows)[BLOCK_D], const int* tokens,
      const StepSize& size, const Lane& me) {
#pragma unroll
    for (int i = 0; i < STEPS; ++i) {
      const int t = me.step + i * SLICES;
      delta[i] = size.raw(proj + t * PROJ_ROW);
      x[i] = to_float(rows[t][me.local]);
    }
#pragma unroll
    for (int i = 0; i < STEPS; ++i) {
      float e;
      const bool there = tokens[me.step + i * SLICES] != -2;
      delta[i] = there ? softplus(delta[i], e) : 0.f;
    }
  }
};
