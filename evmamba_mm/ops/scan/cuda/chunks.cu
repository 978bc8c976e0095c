#include "tiles.cuh"

// Long maps with few sequences are cut into chunks that are scanned side by
// side. A first pass finds what each chunk alone leaves in the states, `join`
// turns that into the states that each chunk starts with.

struct ChunkArgs {
  const io_t *in, *proj;
  const float *dt_weight, *dt_bias, *A_logs;
  float *left, *passed;
  i64 proj_stride, proj_offset, in_offset;
};

struct ChunkTile {
  float delta[TILE][ROW], in[TILE][ROW];
  float proj[2][TILE * PROJ_ROW];
  int tokens[4][TILE];
  io_t raw[TILE][BLOCK_D];
};
static_assert(sizeof(ChunkTile) == SHARED, "the host gives another size");

// States left by a chunk that starts from none: from the first step to the
// last for h, backwards for its gradient, whose input is C * dy.
template <bool BACKWARD>
__device__ __forceinline__ void leave(const Geometry& map, const ChunkArgs& a) {
  extern __shared__ float4 memory[];
  ChunkTile& s = *reinterpret_cast<ChunkTile*>(memory);
  const Place at(map, ((map.height + map.step - 1) / map.step) *
                          ((map.width + map.step - 1) / map.step));
  const Group group(map, at.group);
  const Lane me;
  const int channel0 = at.split * BLOCK_D, d = channel0 + me.local;
  const i64 tokens = (i64)map.height * map.width;
  const io_t* in =
      a.in + at.batch * tokens * D + at.group * a.in_offset;
  const io_t* proj = a.proj + at.batch * tokens * a.proj_stride +
                     group.parameters * a.proj_offset;
  float A[SN][SD], h[SN][SD] = {}, passed = 0.f;
  load_decay(A, a.A_logs, group, me, channel0);
  const StepSize size(a.dt_weight, a.dt_bias, group.parameters, d);
  clear(s.proj[0], 2 * TILE * PROJ_ROW);
  for (int count = 0; count < at.last - at.first; ++count) {
    const int k = BACKWARD ? at.last - 1 - count : at.first + count;
    float* rows = s.proj[count & 1];
    int* now = s.tokens[count % 4];
    if (threadIdx.x < TILE)
      now[threadIdx.x] = group.token(map, k * TILE + threadIdx.x);
    __syncthreads();
    MapTile x;
    ProjTile p;
    p.fetch(proj, a.proj_stride, now);
    x.fetch(in, now, channel0, me);
    p.put(rows);
    x.put(s.raw, me);
    __syncthreads();
    const Expanded e(rows, s.raw, now, size, me);
#pragma unroll
    for (int i = 0; i < STEPS; ++i) {
      const int t = me.step + i * SLICES;
      passed += e.delta[i];
      s.delta[t][me.local] = e.delta[i];
      s.in[t][me.local] = BACKWARD ? e.x[i] : e.x[i] * e.delta[i];
    }
    __syncwarp();
#pragma unroll 4
    for (int step = 0; step < TILE; ++step) {
      const int t = BACKWARD ? TILE - 1 - step : step;
      float delta[SD], v[SD], row[SN];
      load_row(delta, &s.delta[t][me.d0]);
      load_row(v, &s.in[t][me.d0]);
      load_row(row, rows + t * PROJ_ROW + (BACKWARD ? NP : 0) + me.n0);
#pragma unroll
      for (int j = 0; j < SD; ++j) {
#pragma unroll
        for (int i = 0; i < SN; ++i) {
          const float decay = exp2_fast(delta[j] * A[i][j]);
          h[i][j] = BACKWARD ? decay * fmaf(row[i], v[j], h[i][j])
                             : fmaf(decay, h[i][j], row[i] * v[j]);
        }
      }
    }
    __syncwarp();
  }
  const i64 slot = at.sequence * map.chunks + at.chunk;
  move_states<true>(h, a.left, slot, me, channel0);
#pragma unroll
  for (int off = REP / 2; off >= 1; off /= 2)
    passed += __shfl_xor_sync(~0u, passed, off);
  if (a.passed && d < D && me.step == 0) a.passed[slot * D + d] = passed;
}

extern "C" __global__ void __launch_bounds__(THREADS) chunk_forward(
    Geometry map, ChunkArgs a) {
  leave<false>(map, a);
}

extern "C" __global__ void __launch_bounds__(THREADS) chunk_backward(
    Geometry map, ChunkArgs a) {
  leave<true>(map, a);
}

// In place: what a chunk leaves becomes what it starts with. One thread a
// state; `passed` is the sum of the steps of a chunk.
extern "C" __global__ void __launch_bounds__(256) chunk_join(
    Geometry map, float* states, const float* passed, const float* A_logs,
    i64 sequences, int backward) {
  const i64 e = (i64)blockIdx.x * 256 + threadIdx.x;
  if (e >= sequences * D * N) return;
  const int n = e % N, d = e / N % D;
  const i64 sequence = e / (N * D);
  const Group group(map, sequence % map.groups);
  const float A =
      -expf(A_logs[(i64)(group.parameters * D + d) * N + n]) * LOG2E;
  float h = 0.f;
  for (int i = 0; i < map.chunks; ++i) {
    const int chunk = backward ? map.chunks - 1 - i : i;
    const i64 slot = sequence * map.chunks + chunk;
    float* p = states + state_index(slot, d, n);
    const float left = *p;
    *p = h;
    h = fmaf(exp2_fast(passed[slot * D + d] * A), h, left);
  }
}
