#pragma once

#include "tiles.cuh"

// The steps of a tile from the last to the first. The states are recomputed
// from those at its start; every GAP-th is kept in shared memory, those
// between are recomputed once more when needed. GAP is given by the host, 2
// or 4.

struct BackwardTile {
  // `du` and `dy` make place for the gradients of delta * u and of delta.
  float delta[TILE][ROW], du[TILE][ROW], dy[TILE][ROW];
  float states[TILE / GAP][SN * SD / 4][THREADS][4];
  float proj[2][TILE * PROJ_ROW];
  // Those of a tile are added up during the next.
  float sums[2][TILE][WARPS][PROJ_ROW];
  float dt_weight[BLOCK_D][RP];
  int tokens[4][TILE];
  // `u` makes place for its gradient.
  io_t u[TILE][BLOCK_D], raw_dy[TILE][BLOCK_D];
};
static_assert(
    sizeof(BackwardTile) == SHARED, "the host gives another size");

static_assert(SN % 4 == 0 && TILE % GAP == 0 && GAP % 2 == 0, "sizes");

struct Sums {
  float dA[SN][SD], weight[RP], bias, skip;
};

__device__ __forceinline__ void keep(
    BackwardTile& s, int slot, const float (&h)[SN][SD]) {
#pragma unroll
  for (int i = 0; i < SN * SD / 4; ++i)
    *reinterpret_cast<float4*>(s.states[slot][i][threadIdx.x]) = make_float4(
        h[4 * i / SD][4 * i % SD], h[(4 * i + 1) / SD][(4 * i + 1) % SD],
        h[(4 * i + 2) / SD][(4 * i + 2) % SD],
        h[(4 * i + 3) / SD][(4 * i + 3) % SD]);
}

__device__ __forceinline__ void recall(
    const BackwardTile& s, int slot, float (&h)[SN][SD]) {
#pragma unroll
  for (int i = 0; i < SN * SD / 4; ++i) {
    const float4 x =
        *reinterpret_cast<const float4*>(s.states[slot][i][threadIdx.x]);
    h[4 * i / SD][4 * i % SD] = x.x;
    h[(4 * i + 1) / SD][(4 * i + 1) % SD] = x.y;
    h[(4 * i + 2) / SD][(4 * i + 2) % SD] = x.z;
    h[(4 * i + 3) / SD][(4 * i + 3) % SD] = x.w;
  }
}

__device__ __forceinline__ void advance(
    float (&h)[SN][SD], const float (&A)[SN][SD], const BackwardTile& s,
    const float* proj, int t, const Lane& me) {
  float delta[SD], du[SD], B[SN];
  load_row(delta, &s.delta[t][me.d0]);
  load_row(du, &s.du[t][me.d0]);
  load_row(B, proj + t * PROJ_ROW + me.n0);
#pragma unroll
  for (int j = 0; j < SD; ++j)
#pragma unroll
    for (int i = 0; i < SN; ++i)
      h[i][j] = fmaf(exp2_fast(delta[j] * A[i][j]), h[i][j], du[j] * B[i]);
}

// What one step adds up: over channels for B and C, over states for
// delta * u ([2j]) and, times A, for delta ([2j + 1]).
struct StepSums {
  float BC[2 * SN], channel[2 * SD];
};

struct StepInputs {
  float delta[SD], du[SD], dy[SD], B[SN], C[SN];
  __device__ __forceinline__ StepInputs(
      const BackwardTile& s, const float* proj, int t, const Lane& me) {
    load_row(delta, &s.delta[t][me.d0]);
    load_row(du, &s.du[t][me.d0]);
    load_row(dy, &s.dy[t][me.d0]);
    load_row(B, proj + t * PROJ_ROW + me.n0);
    load_row(C, proj + t * PROJ_ROW + NP + me.n0);
  }
};

// One state at one step: `old` is a * h before the step, `g` the gradient of
// h after it and then, times a, of h before it.
__device__ __forceinline__ void step_back(
    float& g, float& dA, StepSums& sums, const StepInputs& x, float A,
    float a, float old, int i, int j) {
  const float h = fmaf(x.du[j], x.B[i], old);
  g = fmaf(x.C[i], x.dy[j], g);
  sums.BC[SN + i] = fmaf(x.dy[j], h, sums.BC[SN + i]);
  sums.BC[i] = fmaf(g, x.du[j], sums.BC[i]);
  sums.channel[2 * j] = fmaf(g, x.B[i], sums.channel[2 * j]);
  const float q = g * old;
  sums.channel[2 * j + 1] = fmaf(q, A, sums.channel[2 * j + 1]);
  dA = fmaf(q, x.delta[j], dA);
  g *= a;
}

// Two steps of all states, from `h` before the first of them.
__device__ __forceinline__ void pair_back(
    const float (&h)[SN][SD], float (&g)[SN][SD], float (&dA)[SN][SD],
    const float (&A)[SN][SD], const StepInputs& x0, const StepInputs& x1,
    StepSums& s0, StepSums& s1) {
#pragma unroll
  for (int j = 0; j < SD; ++j) {
#pragma unroll
    for (int i = 0; i < SN; ++i) {
      const float a0 = exp2_fast(x0.delta[j] * A[i][j]);
      const float a1 = exp2_fast(x1.delta[j] * A[i][j]);
      const float old0 = a0 * h[i][j];
      const float old1 = a1 * fmaf(x0.du[j], x0.B[i], old0);
      step_back(g[i][j], dA[i][j], s1, x1, A[i][j], a1, old1, i, j);
      step_back(g[i][j], dA[i][j], s0, x0, A[i][j], a0, old0, i, j);
    }
  }
}

// Adds a step up across lanes and leaves the sums for the end of the tile.
__device__ __forceinline__ void sum_step(
    BackwardTile& s, float (*sums)[WARPS][PROJ_ROW], StepSums& v, int t,
    const Lane& me) {
  sum_lanes<2 * SN, DL, NL>(v.BC, me.lane);
  constexpr int COUNT = 2 * SN > DL ? 2 * SN / DL : 1;
  constexpr int COPIES = DL > 2 * SN ? DL / (2 * SN) : 1;
  const int index = me.lane / NL / COPIES * COUNT;
#pragma unroll
  for (int c = 0; c < COUNT; ++c) {
    const int i = index + c;
    if (COPIES == 1 || me.lane / NL % COPIES == 0)
      sums[t][me.warp][i < SN ? me.n0 + i : NP + me.n0 + i - SN] = v.BC[c];
  }
  sum_lanes<2 * SD, NL, 1>(v.channel, me.lane);
  if constexpr (REP == 1) {
    s.du[t][me.local] = v.channel[0];
    s.dy[t][me.local] = v.channel[1];
  } else {
    // Half of a channel's lanes hold either sum.
    if (REP == 2 || me.step % (REP / 2) == 0)
      (me.lane & (REP / 2) ? s.dy : s.du)[t][me.local] = v.channel[0];
  }
}

__device__ __forceinline__ void tile_back(
    BackwardTile& s, const float* proj, float (*sums)[WARPS][PROJ_ROW],
    float (&g)[SN][SD],
    const float (&A)[SN][SD], Sums& total, const Lane& me) {
#pragma unroll 4 / GAP
  for (int slot = TILE / GAP - 1; slot >= 0; --slot) {
#pragma unroll
    for (int pair = GAP / 2 - 1; pair >= 0; --pair) {
      float h[SN][SD];
      recall(s, slot, h);
      int t = slot * GAP;
#pragma unroll
      for (int i = 0; i < 2 * pair; ++i) advance(h, A, s, proj, t++, me);
      StepSums s0 = {}, s1 = {};
      {
        const StepInputs x0(s, proj, t, me), x1(s, proj, t + 1, me);
        pair_back(h, g, total.dA, A, x0, x1, s0, s1);
      }
      __syncwarp();
      sum_step(s, sums, s1, t + 1, me);
      sum_step(s, sums, s0, t, me);
    }
  }
  __syncwarp();
}
