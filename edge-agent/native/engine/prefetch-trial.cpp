#include "prefetch-trial.h"

#include <cmath>

// A cold cache fills at first. Turns are short, so that both ways see the same text; the state of staging outlasts them.
static const int64_t WARM_TOKENS = 16, TURN_TOKENS = 4;
// Tokens each way before a clear difference is believed, and before any is.
static const double FEWEST_TOKENS = 24, MOST_TOKENS = 64;
static const double CLEAR = 2;  // standard errors
static const int64_t REST_TOKENS = 2048;

bool prefetch_trial_on(const prefetch_trial & trial) {
    if (trial.state == TRIAL_MEASURING) return trial.tokens / TURN_TOKENS % 2 == 0;
    return trial.state != TRIAL_OFF;
}

static void add(trial_side & side, double ns, double misses) {
    side.tokens++;
    side.misses += misses;
    side.ns += ns;
    side.misses_squared += misses * misses;
    side.ns_squared += ns * ns;
    side.misses_ns += misses * ns;
}

struct difference { double ns, error; };  // with minus without, and its standard error

// Analysis of covariance: a common slope within both sides, and the step that is left between their means.
static difference compare(const trial_side & a, const trial_side & b) {
    double mm = 0, mt = 0, tt = 0;
    for (const trial_side * s : {&a, &b}) {
        mm += s->misses_squared - s->misses * s->misses / s->tokens;
        mt += s->misses_ns - s->misses * s->ns / s->tokens;
        tt += s->ns_squared - s->ns * s->ns / s->tokens;
    }
    const double slope = mm > 0 ? mt / mm : 0;
    const double rest = std::fmax(0, tt - slope * mt) / (a.tokens + b.tokens - 3);
    const double apart = a.misses / a.tokens - b.misses / b.tokens;
    const double spread = 1 / a.tokens + 1 / b.tokens + (mm > 0 ? apart * apart / mm : 0);
    return {a.ns / a.tokens - b.ns / b.tokens - slope * apart, std::sqrt(rest * spread)};
}

static void enter(prefetch_trial & trial, trial_state state) {
    trial.state = state;
    trial.tokens = 0;
}

static void measure(prefetch_trial & trial, double ns, double misses) {
    add(prefetch_trial_on(trial) ? trial.with : trial.without, ns, misses);
    trial.tokens++;
    const trial_side & a = trial.with, & b = trial.without;
    if (trial.tokens % (2 * TURN_TOKENS) != 0 || b.tokens < FEWEST_TOKENS) return;
    const difference d = compare(a, b);
    if (std::fabs(d.ns) < CLEAR * d.error && b.tokens < MOST_TOKENS) return;
    trial.gain.set(-d.ns / (b.ns / b.tokens));
    enter(trial, d.ns < 0 ? TRIAL_ON : TRIAL_OFF);
}

void prefetch_trial_add(prefetch_trial & trial, int64_t ns, int64_t misses) {
    if (trial.state == TRIAL_MEASURING) return measure(trial, double(ns), double(misses));
    const int64_t most = trial.state == TRIAL_WARMING ? WARM_TOKENS : REST_TOKENS;
    if (++trial.tokens < most) return;
    trial.with = trial.without = trial_side();
    enter(trial, TRIAL_MEASURING);
}
