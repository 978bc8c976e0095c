#pragma once

// What both directions of the fused 2-D scan share.
//
// A block scans one group of one image for BLOCK_D channels. In a warp, lanes
// share the states of a channel: NL lanes hold SN states each of SD channels,
// and DL such teams lie side by side. Every sum over states or channels is
// then short inside a thread and a few shuffles across lanes.
//
// Compile-time constants given by the host: DTYPE (0 float, 1 half, 2 bfloat),
// D channels, N states, R dt rank, SN, SD, NL, WARPS, TILE steps, and SHARED
// bytes of shared memory.

constexpr int DL = 32 / NL;
constexpr int WARP_D = DL * SD;
constexpr int BLOCK_D = WARPS * WARP_D;
constexpr int THREADS = WARPS * 32;
constexpr int NP = NL * SN;
constexpr int RP = (R + 3) / 4 * 4;
// Columns of a projected row: B, C, dt and padding to whole vectors.
constexpr int P = (2 * N + R + 7) / 8 * 8;
// Steps that lie side by side in the element-wise stages.
constexpr int SLICES = 32 / WARP_D;
constexpr int STEPS = TILE / SLICES;
// After the sum over states each channel lies on REP neighbouring lanes.
constexpr int REP = NL / SD;
// Floats of a step's row in shared memory: the same, with B and C padded.
constexpr int PROJ_ROW = (2 * NP + R + 7) / 8 * 8;
// Rows are four floats apart from a multiple of the banks.
constexpr int ROW = BLOCK_D + 4;
constexpr float LOG2E = 1.4426950408889634f;
constexpr float LN2 = 0.6931471805599453f;

static_assert(NL * DL == 32 && REP * SD == NL, "lanes must cover the states");
static_assert(TILE % SLICES == 0, "steps must split evenly");

typedef long long i64;

#if DTYPE == 0
typedef float io_t;
__device__ __forceinline__ float to_float(io_t x) { return x; }
__device__ __forceinline__ io_t from_float(float x) { return x; }
#elif DTYPE == 1
typedef unsigned short io_t;
__device__ __forceinline__ float to_float(io_t x) {
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x));
  return y;
}
__device__ __forceinline__ io_t from_float(float x) {
  io_t y;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y) : "f"(x));
  return y;
}
#else
typedef unsigned short io_t;
__device__ __forceinline__ float to_float(io_t x) {
  return __uint_as_float((unsigned)x << 16);
}
__device__ __forceinline__ io_t from_float(float x) {
  io_t y;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y) : "f"(x));
  return y;
}
#endif

__device__ __forceinline__ float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ __forceinline__ float reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// softplus(x) with full relative accuracy: steps start around 0.001, where
// log(1 + e) would lose a dozen bits. log1p(e) = 2 artanh(e / (2 + e)) for
// e = exp(-|x|) <= 1, so the series' argument is at most 1/3.
__device__ __forceinline__ float softplus(float x, float& e) {
  e = exp2_fast(-fabsf(x) * LOG2E);
  float s = e * reciprocal(2.f + e);
  float z = s * s;
  float p = fmaf(z, 1.f / 15.f, 1.f / 13.f);
  p = fmaf(z, p, 1.f / 11.f);
  p = fmaf(z, p, 1.f / 9.f);
  p = fmaf(z, p, 1.f / 7.f);
  p = fmaf(z, p, 1.f / 5.f);
  p = fmaf(z, p, 1.f / 3.f);
  return fmaxf(x, 0.f) + 2.f * fmaf(s * z, p, s);
}

// Sums `M` values over the `L` lanes that differ in the bits of
// `(L - 1) * STRIDE`. Afterwards v[0 .. max(1, M / L)) of the lane with index
// l among them holds the sums of values l * max(1, M / L) and up, or, for
// M < L, of value l / (L / M).
template <int M, int L, int STRIDE>
__device__ __forceinline__ void sum_lanes(float (&v)[M], int lane) {
  int m = M;
#pragma unroll
  for (int off = L / 2; off >= 1; off /= 2) {
    if (m > 1) {
      m /= 2;
      const bool upper = lane & (off * STRIDE);
#pragma unroll
      for (int i = 0; i < M / 2; ++i) {
        if (i < m) {
          const float send = upper ? v[i] : v[i + m];
          const float keep = upper ? v[i + m] : v[i];
          v[i] = keep + __shfl_xor_sync(~0u, send, off * STRIDE);
        }
      }
    } else {
      v[0] += __shfl_xor_sync(~0u, v[0], off * STRIDE);
    }
  }
}

template <int COUNT>
__device__ __forceinline__ void load_row(float (&v)[COUNT], const float* p) {
  if constexpr (COUNT % 4 == 0) {
#pragma unroll
    for (int i = 0; i < COUNT; i += 4) {
      const float4 x = *reinterpret_cast<const float4*>(p + i);
      v[i] = x.x, v[i + 1] = x.y, v[i + 2] = x.z, v[i + 3] = x.w;
    }
  } else {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) v[i] = p[i];
  }
}

// Where the scan's steps lie on the map. ATROUS: group g = i + step * j holds
// the cells (i::step, j::step), odd i read by columns. CROSS: the whole map
// by rows, by columns, and each reversed.
struct Geometry {
  int height, width, step, cross, groups;
  int chunks, tiles_per_chunk, splits;
};

struct Group {
  int row, column, step, rows, columns, length, parameters;
  bool by_column, reversed;

  __device__ Group(const Geometry& m, int g) {
    step = m.cross ? 1 : m.step;
    row = m.cross ? 0 : g % step;
    column = m.cross ? 0 : g / step;
    rows = (m.height + step - 1) / step;
    columns = (m.width + step - 1) / step;
    length = rows * columns;
    by_column = m.cross ? g & 1 : row & 1;
    reversed = m.cross && g >= 2;
    parameters = m.cross ? g : row % 2 + 2 * (column % 2);
  }

  // Token of step t, -1 in the padding, -2 beyond the end.
  __device__ int token(const Geometry& m, int t) const {
    if (t >= length) return -2;
    if (reversed) t = length - 1 - t;
    const int line = by_column ? rows : columns;
    const int outer = t / line, inner = t - outer * line;
    const int y = row + step * (by_column ? inner : outer);
    const int x = column + step * (by_column ? outer : inner);
    return y < m.height && x < m.width ? y * m.width + x : -1;
  }
};

// The block's share of the work.
struct Place {
  int batch, group, split, chunk, first, last;
  i64 sequence;

  __device__ Place(const Geometry& m, int length) {
    int b = blockIdx.x;
    split = b % m.splits, b /= m.splits;
    chunk = b % m.chunks, b /= m.chunks;
    sequence = b;
    group = b % m.groups;
    batch = b / m.groups;
    const int tiles = (length + TILE - 1) / TILE;
    first = chunk * m.tiles_per_chunk;
    last = min(tiles, first + m.tiles_per_chunk);
  }
};

// Tokens of the steps of a tile, found by one warp: another one each time, or
// the same would always be the last at the barrier.
__device__ __forceinline__ void find_tokens(
    int (*tokens)[TILE], int k, const Geometry& map, const Group& group) {
  const int t = static_cast<int>(threadIdx.x) - k % WARPS * 32;
  if (t >= 0 && t < TILE) tokens[k % 4][t] = group.token(map, k * TILE + t);
}

// A thread's place among the states and channels of its warp.
struct Lane {
  int lane, warp, n0, d0, local, step;
  __device__ Lane() {
    lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    n0 = lane % NL * SN;
    d0 = warp * WARP_D + lane / NL * SD;
    // Channel within the block, and first step, of element-wise stages. The
    // sum over the states leaves a channel's result on the same thread.
    local = warp * WARP_D + lane / REP;
    step = lane % REP;
  }
};

__device__ __forceinline__ void load_decay(
    float (&A)[SN][SD], const float* A_logs, const Group& group,
    const Lane& me, int channel0) {
#pragma unroll
  for (int j = 0; j < SD; ++j) {
    const int d = channel0 + me.d0 + j;
#pragma unroll
    for (int i = 0; i < SN; ++i) {
      const int n = me.n0 + i;
      const bool there = d < D && n < N;
      const i64 at = (i64)(group.parameters * D + d) * N + n;
      A[i][j] = there ? -expf(A_logs[at]) * LOG2E : 0.f;
    }
  }
}

// States of (sequence, slot) as [D][N] in memory.
__device__ __forceinline__ i64 state_index(i64 slot, int d, int n) {
  return (slot * D + d) * N + n;
}

template <bool STORE>
__device__ __forceinline__ void move_states(
    float (&h)[SN][SD], float* memory, i64 slot, const Lane& me,
    int channel0) {
#pragma unroll
  for (int j = 0; j < SD; ++j) {
    const int d = channel0 + me.d0 + j;
    if (d >= D) continue;
    float* p = memory + state_index(slot, d, me.n0);
    if constexpr (N == NP && SN % 4 == 0) {
#pragma unroll
      for (int i = 0; i < SN; i += 4) {
        float4* q = reinterpret_cast<float4*>(p + i);
        if constexpr (STORE) {
          *q = make_float4(h[i][j], h[i + 1][j], h[i + 2][j], h[i + 3][j]);
        } else {
          const float4 x = *q;
          h[i][j] = x.x, h[i + 1][j] = x.y;
          h[i + 2][j] = x.z, h[i + 3][j] = x.w;
        }
      }
    } else {
#pragma unroll
      for (int i = 0; i < SN; ++i) {
        if (me.n0 + i < N) {
          if constexpr (STORE) p[i] = h[i][j];
          else h[i][j] = p[i];
        }
      }
    }
  }
}
