#include "backward_steps.cuh"

// Gradients, tile by tile from the last step to the first, each from the
// state saved at its start.

struct BackwardArgs {
  const io_t *dy, *u, *proj;
  const float *dt_weight, *dt_bias, *A_logs, *Ds, *saved, *start;
  io_t *du, *dproj;
  // Sums over the channels of one split, where a map has several.
  float* dproj_split;
  // One row a block: dA [D][N], and [D][2 + R] of bias, skip and weight.
  float *dA, *dsize;
  i64 proj_stride, proj_offset, dy_offset, du_offset, split_offset;
};

// 1 - exp(-x) for x >= 0, the derivative of softplus where it gave x.
__device__ __forceinline__ float rise(float x) {
  float p = fmaf(x, -1.f / 7.f, 1.f);
  p = fmaf(x * p, -1.f / 6.f, 1.f);
  p = fmaf(x * p, -1.f / 5.f, 1.f);
  p = fmaf(x * p, -1.f / 4.f, 1.f);
  p = fmaf(x * p, -1.f / 3.f, 1.f);
  p = fmaf(x * p, -1.f / 2.f, 1.f);
  return x < 0.5f ? x * p : 1.f - exp2_fast(-x * LOG2E);
}

// From a tile's sums to the gradients of u and of the raw step sizes.
__device__ __forceinline__ void finish_tile(
    BackwardTile& s, const float* proj, float skip, Sums& total,
    const Lane& me) {
  float input[STEPS], decay[STEPS], delta[STEPS], u[STEPS], dy[STEPS];
#pragma unroll
  for (int i = 0; i < STEPS; ++i) {
    const int t = me.step + i * SLICES;
    input[i] = s.du[t][me.local], decay[i] = s.dy[t][me.local];
    delta[i] = s.delta[t][me.local];
    u[i] = to_float(s.u[t][me.local]);
    dy[i] = to_float(s.raw_dy[t][me.local]);
  }
#pragma unroll
  for (int i = 0; i < STEPS; ++i) {
    total.skip = fmaf(dy[i], u[i], total.skip);
    decay[i] = fmaf(input[i], u[i], LN2 * decay[i]) * rise(delta[i]);
    input[i] = fmaf(input[i], delta[i], skip * dy[i]);
    total.bias += decay[i];
    float dt[RP];
    load_row(dt, proj + (me.step + i * SLICES) * PROJ_ROW + 2 * NP);
#pragma unroll
    for (int r = 0; r < R; ++r)
      total.weight[r] = fmaf(decay[i], dt[r], total.weight[r]);
  }
#pragma unroll
  for (int i = 0; i < STEPS; ++i) {
    const int t = me.step + i * SLICES;
    s.u[t][me.local] = from_float(input[i]);
    s.delta[t][me.local] = decay[i];
  }
}

// Gradient of dt from those of the raw step sizes, for the warp's channels.
__device__ __forceinline__ void back_to_dt(
    BackwardTile& s, float (*sums)[WARPS][PROJ_ROW], const Lane& me) {
  constexpr int SHARE = 32 / TILE, COUNT = WARP_D / SHARE;
  const int t = me.lane / SHARE, part = me.lane % SHARE;
  float sum[RP] = {};
#pragma unroll 4
  for (int c = 0; c < COUNT; ++c) {
    // Lanes start at different channels: their rows share banks.
    const int local =
        me.warp * WARP_D + part * COUNT + (c + t) % COUNT;
    const float raw = s.delta[t][local];
    float w[RP];
    load_row(w, s.dt_weight[local]);
#pragma unroll
    for (int r = 0; r < R; ++r) sum[r] = fmaf(raw, w[r], sum[r]);
  }
#pragma unroll
  for (int off = 1; off < SHARE; off *= 2)
#pragma unroll
    for (int r = 0; r < R; ++r)
      sum[r] += __shfl_xor_sync(~0u, sum[r], off);
  if (part == 0)
#pragma unroll
    for (int r = 0; r < R; ++r) sums[t][me.warp][2 * NP + r] = sum[r];
}

// Adds the warps' shares up and writes them, a few columns a thread.
__device__ __forceinline__ void write_proj(
    const float (*sums)[WARPS][PROJ_ROW], const int* tokens, io_t* dproj,
    float* split, i64 stride) {
  constexpr int WIDTH = 8, PER_STEP = P / WIDTH;
#pragma unroll
  for (int first = 0; first < TILE * PER_STEP; first += THREADS) {
    const int e = first + threadIdx.x;
    const int t = e / PER_STEP, c = e % PER_STEP * WIDTH;
    const int token = e < TILE * PER_STEP ? tokens[t] : -1;
    if (token < 0) continue;
    alignas(16) float sum[WIDTH] = {};
    alignas(16) io_t narrow[WIDTH];
#pragma unroll
    for (int w = 0; w < WARPS; ++w) {
#pragma unroll
      for (int k = 0; k < WIDTH; ++k)
        if (N == NP || c + k < 2 * N + R)
          sum[k] += sums[t][w][proj_column(c + k)];
    }
#pragma unroll
    for (int k = 0; k < WIDTH; ++k) narrow[k] = from_float(sum[k]);
    struct alignas(16) Wide { char x[16]; };
    if (split) {
      Wide* to = reinterpret_cast<Wide*>(split + token * stride + c);
      to[0] = reinterpret_cast<Wide*>(sum)[0];
      to[1] = reinterpret_cast<Wide*>(sum)[1];
    } else {
      Wide* to = reinterpret_cast<Wide*>(dproj + token * stride + c);
#pragma unroll
      for (int k = 0; k < sizeof(narrow) / 16; ++k)
        to[k] = reinterpret_cast<Wide*>(narrow)[k];
    }
  }
}

// A tile on its way from device memory.
struct Incoming {
  MapTile u, dy;
  ProjTile proj;
  float h[SN][SD];
};

// Fills delta, delta * u and dy of a tile.
__device__ __forceinline__ void expand(
    BackwardTile& s, const float* proj, const int* tokens,
    const StepSize& size, const Lane& me) {
  const Expanded v(proj, s.u, tokens, size, me);
  float dy[STEPS];
#pragma unroll
  for (int i = 0; i < STEPS; ++i)
    dy[i] = to_float(s.raw_dy[me.step + i * SLICES][me.local]);
#pragma unroll
  for (int i = 0; i < STEPS; ++i) {
    const int t = me.step + i * SLICES;
    s.delta[t][me.local] = v.delta[i];
    s.du[t][me.local] = v.delta[i] * v.x[i];
    s.dy[t][me.local] = dy[i];
  }
  __syncwarp();
}

__device__ __forceinline__ void write_sums(
    const BackwardArgs& a, const Geometry& map, const Place& at, Sums& total,
    int channel0, int d, const Lane& me) {
  const i64 slot = at.sequence * map.chunks + at.chunk;
  move_states<true>(total.dA, a.dA, slot, me, channel0);
#pragma unroll
  for (int off = REP / 2; off >= 1; off /= 2) {
    total.bias += __shfl_xor_sync(~0u, total.bias, off);
    total.skip += __shfl_xor_sync(~0u, total.skip, off);
#pragma unroll
    for (int r = 0; r < R; ++r)
      total.weight[r] += __shfl_xor_sync(~0u, total.weight[r], off);
  }
  if (d >= D || me.step != 0) return;
  float* p = a.dsize + (slot * D + d) * (R + 2);
  p[0] = total.bias, p[1] = total.skip;
#pragma unroll
  for (int r = 0; r < R; ++r) p[2 + r] = total.weight[r];
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) scan_backward(
    Geometry map, BackwardArgs a) {
  extern __shared__ float4 memory[];
  BackwardTile& s = *reinterpret_cast<BackwardTile*>(memory);
  const Place at(map, ((map.height + map.step - 1) / map.step) *
                          ((map.width + map.step - 1) / map.step));
  const Group group(map, at.group);
  const Lane me;
  const int channel0 = at.split * BLOCK_D, d = channel0 + me.local;
  const i64 tokens = (i64)map.height * map.width, first = at.batch * tokens;
  const i64 columns = group.parameters * a.proj_offset;
  const i64 rows = first * a.proj_stride + columns;
  const int tiles = (group.length + TILE - 1) / TILE;
  float A[SN][SD], g[SN][SD] = {};
  Sums total = {};
  load_decay(A, a.A_logs, group, me, channel0);
  const StepSize size(a.dt_weight, a.dt_bias, group.parameters, d);
  if (me.step == 0)
#pragma unroll
    for (int r = 0; r < RP; ++r) s.dt_weight[me.local][r] = size.weight[r];
  const float skip = d < D ? a.Ds[group.parameters * D + d] : 0.f;
  if (a.start)
    move_states<false>(
        g, const_cast<float*>(a.start),
        at.sequence * map.chunks + at.chunk, me, channel0);
  clear(s.proj[0], 2 * TILE * PROJ_ROW);
  // The padding columns are written too.
  clear(&s.sums[0][0][0][0], 2 * TILE * WARPS * PROJ_ROW);
  const io_t* u = a.u + first * D;
  const io_t* dy = a.dy + first * D + at.group * a.dy_offset;
  io_t* dproj = a.dproj + rows;
  float* split =
      a.dproj_split ? a.dproj_split + at.split * a.split_offset + rows : 0;
  Incoming next = {};
  find_tokens(s.tokens, at.last - 1, map, group);
  // The first tile's numbers come in at once, each other's during the one
  // before it.
  for (int k = at.last; k >= at.first; --k) {
    const int *now = s.tokens[k % 4], *coming = s.tokens[(k + 3) % 4];
    float* proj = s.proj[k & 1];
    float h[SN][SD];
    if (k < at.last) {
      next.proj.put(proj);
      next.u.put(s.u, me);
      next.dy.put(s.raw_dy, me);
#pragma unroll
      for (int i = 0; i < SN * SD; ++i) (&h[0][0])[i] = (&next.h[0][0])[i];
    }
    __syncthreads();
    if (k - 2 >= at.first) find_tokens(s.tokens, k - 2, map, group);
    if (k + 1 < at.last)
      write_proj(s.sums[(k + 1) & 1], s.tokens[(k + 1) % 4], dproj, split,
                 a.proj_stride);
    if (k < at.last) expand(s, proj, now, size, me);
    if (k > at.first) {
      next.proj.fetch(a.proj + rows, a.proj_stride, coming);
      next.u.fetch(u, coming, channel0, me);
      next.dy.fetch(dy, coming, channel0, me);
      move_states<false>(
          next.h, const_cast<float*>(a.saved), at.sequence * tiles + k - 1,
          me, channel0);
    }
    if (k == at.last) continue;
#pragma unroll 4 / GAP
    for (int slot = 0; slot < TILE / GAP; ++slot) {
      keep(s, slot, h);
      if (slot + 1 < TILE / GAP)
#pragma unroll
        for (int i = 0; i < GAP; ++i) advance(h, A, s, proj, slot * GAP + i, me);
    }
    tile_back(s, proj, s.sums[k & 1], g, A, total, me);
    finish_tile(s, proj, skip, total, me);
    __syncwarp();
    MapTile::write(s.u, a.du + first * D + at.group * a.du_offset, now,
                   channel0, me);
    back_to_dt(s, s.sums[k & 1], me);
    // The next tile's numbers take the place of what was written.
    __syncwarp();
  }
  __syncthreads();
  write_proj(s.sums[at.first & 1], s.tokens[at.first % 4], dproj, split,
             a.proj_stride);
  write_sums(a, map, at, total, channel0, d, me);
}
