#include "tiles.cuh"

// Maps are [batch][token][D], projections [batch][token] rows of `proj_stride`
// with this group's columns at `parameters * proj_offset`. `y` of group g
// starts `g * y_offset` further (the four directions of CROSS do not share
// cells of y; the host adds them).
struct ForwardArgs {
  const io_t *u, *proj;
  const float *dt_weight, *dt_bias, *A_logs, *Ds;
  io_t* y;
  float *start, *saved;
  i64 proj_stride, proj_offset, y_offset;
};

struct ForwardTile {
  float delta[TILE][ROW], du[TILE][ROW];
  float proj[2][TILE * PROJ_ROW];
  int tokens[4][TILE];
  // The input, and then the output in its place.
  io_t u[TILE][BLOCK_D];
};
static_assert(sizeof(ForwardTile) == SHARED, "the host gives another size");

// delta and delta * u of a tile.
__device__ __forceinline__ void expand(
    ForwardTile& s, const float* proj, const int* tokens,
    const StepSize& size, const Lane& me) {
  const Expanded v(proj, s.u, tokens, size, me);
#pragma unroll
  for (int i = 0; i < STEPS; ++i) {
    const int t = me.step + i * SLICES;
    s.delta[t][me.local] = v.delta[i];
    s.du[t][me.local] = v.delta[i] * v.x[i];
  }
}

// One step of all states of a thread; y of the SD channels.
__device__ __forceinline__ void advance(
    float (&h)[SN][SD], float (&y)[SD], const float (&A)[SN][SD],
    const ForwardTile& s, const float* row, int t, const Lane& me) {
  float delta[SD], du[SD], B[SN], C[SN];
  load_row(delta, &s.delta[t][me.d0]);
  load_row(du, &s.du[t][me.d0]);
  load_row(B, row + me.n0);
  load_row(C, row + NP + me.n0);
#pragma unroll
  for (int j = 0; j < SD; ++j) {
    // Four sums, so that none waits for the one before.
    float sum[4] = {};
#pragma unroll
    for (int i = 0; i < SN; ++i) {
      const float a = exp2_fast(delta[j] * A[i][j]);
      h[i][j] = fmaf(a, h[i][j], du[j] * B[i]);
      sum[i % 4] = fmaf(C[i], h[i][j], sum[i % 4]);
    }
    y[j] = (sum[0] + sum[1]) + (sum[2] + sum[3]);
  }
}

extern "C" __global__ void __launch_bounds__(THREADS) scan_forward(
    Geometry map, ForwardArgs a) {
  extern __shared__ float4 memory[];
  ForwardTile& s = *reinterpret_cast<ForwardTile*>(memory);
  const Place at(map, ((map.height + map.step - 1) / map.step) *
                          ((map.width + map.step - 1) / map.step));
  if (at.first >= at.last) return;
  const Group group(map, at.group);
  const Lane me;
  const int channel0 = at.split * BLOCK_D, d = channel0 + me.local;
  const i64 tokens = (i64)map.height * map.width;
  const io_t* u = a.u + at.batch * tokens * D;
  const io_t* proj = a.proj + at.batch * tokens * a.proj_stride +
                     group.parameters * a.proj_offset;
  io_t* y = a.y + at.batch * tokens * D + at.group * a.y_offset;

  float A[SN][SD], h[SN][SD] = {};
  load_decay(A, a.A_logs, group, me, channel0);
  const StepSize size(a.dt_weight, a.dt_bias, group.parameters, d);
  const float skip = d < D ? a.Ds[group.parameters * D + d] : 0.f;
  if (a.start)
    move_states<false>(
        h, a.start, at.sequence * map.chunks + at.chunk, me, channel0);
  clear(s.proj[0], 2 * TILE * PROJ_ROW);
  find_tokens(s.tokens, at.first, map, group);
  find_tokens(s.tokens, at.first + 1, map, group);
  __syncthreads();

  MapTile u_next;
  ProjTile p_next;
  p_next.fetch(proj, a.proj_stride, s.tokens[at.first % 4]);
  u_next.fetch(u, s.tokens[at.first % 4], channel0, me);
  const int tiles = (group.length + TILE - 1) / TILE;
  for (int k = at.first; k < at.last; ++k) {
    float* rows = s.proj[k & 1];
    const int *now = s.tokens[k % 4], *next = s.tokens[(k + 1) % 4];
    p_next.put(rows);
    u_next.put(s.u, me);
    __syncthreads();
    find_tokens(s.tokens, k + 2, map, group);
    expand(s, rows, now, size, me);
    if (k + 1 < at.last) {
      p_next.fetch(proj, a.proj_stride, next);
      u_next.fetch(u, next, channel0, me);
    }
    if (a.saved)
      move_states<true>(h, a.saved, at.sequence * tiles + k, me, channel0);
    __syncwarp();
#pragma unroll
    for (int t = 0; t < TILE; ++t) {
      float v[SD];
      advance(h, v, A, s, rows + t * PROJ_ROW, t, me);
      sum_lanes<SD, NL, 1>(v, me.lane);
      // One of the lanes that hold this channel, and no other, touches this
      // cell.
      if (REP == 1 || me.step == 0) {
        const float x = to_float(s.u[t][me.local]);
        s.u[t][me.local] = from_float(fmaf(skip, x, v[0]));
      }
    }
    __syncwarp();
    MapTile::write(s.u, y, now, channel0, me);
    __syncwarp();
  }
}
