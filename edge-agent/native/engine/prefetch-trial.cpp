#include "prefetch-trial.h"

#include <algorithm>

// A cold cache fills at first.
static const int64_t WARM_TOKENS = 16;
// Standard errors from zero: to be sure of a gain after so few blocks, asked again after each; to be sure of a loss, which asks
// for less, since off is what an unsure trial ends with; and to rest long. `prefetch-trial-test` has the error rates.
static const int FEWEST_BLOCKS = 8;
static const double SURE_GAIN = 3, SURE_LOSS = 2, FAR = 4;
static const int64_t LONG_REST = 2048, SHORT_REST = 512;
// What was found before may no longer be so: its standard error counts double, and nothing where the new trial contradicts it.
static const double FADES = 2, CONTRADICTS = 3;

bool prefetch_trial_with(int64_t i) {
    const int64_t turn = i / TRIAL_TURN % 4, block = i / TRIAL_BLOCK;
    return (turn == 0 || turn == 3) == (block % 2 == 0);
}

struct weighed { double value, weight; };

static double weighted_median(weighed * list, int n) {
    double half = 0;
    for (int i = 0; i < n; i++) half += list[i].weight / 2;
    std::sort(list, list + n, [](const weighed & a, const weighed & b) { return a.value < b.value; });
    double sum = 0;
    for (int i = 0; i < n; i++) {
        sum += list[i].weight;
        if (sum >= half) return list[i].value;
    }
    return 0;
}

// Of missed bytes: the line of least absolute deviations through the differences of tokens of one turn.
static double ns_per_byte(const trial_token * tokens, int n) {
    weighed slopes[TRIAL_MOST_TOKENS];
    int count = 0;
    for (int i = 1; i < n; i++) {
        const double bytes = tokens[i].missed_bytes - tokens[i - 1].missed_bytes;
        if (i % TRIAL_TURN == 0 || bytes == 0) continue;
        slopes[count++] = {(tokens[i].ns - tokens[i - 1].ns) / bytes, std::fabs(bytes)};
    }
    return std::fmax(0, weighted_median(slopes, count));
}

static double block_gain(const trial_token * block, bool with_first, double per_byte) {
    double saved = 0, all = 0;
    for (int i = 0; i < TRIAL_BLOCK; i++) {
        const double ns = block[i].ns - per_byte * block[i].missed_bytes;
        saved += prefetch_trial_with(i) == with_first ? -ns : ns;
        all += block[i].ns;
    }
    return saved / (all / 2);
}

// Without a fifth of the values on either side. Sorts them.
static trial_estimate trimmed_mean(double * values, int n) {
    std::sort(values, values + n);
    const int cut = n / 5, left = n - 2 * cut;
    trial_estimate mean;
    for (int i = cut; i < n - cut; i++) mean.gain += values[i] / left;
    const auto winsorized = [&](int i) { return values[std::min(std::max(i, cut), n - 1 - cut)]; };
    double middle = 0, squares = 0;
    for (int i = 0; i < n; i++) middle += winsorized(i) / n;
    for (int i = 0; i < n; i++) squares += (winsorized(i) - middle) * (winsorized(i) - middle);
    mean.error = std::fmax(1e-6, std::sqrt(squares / (double(left) * (left - 1))));
    return mean;
}

trial_estimate prefetch_trial_estimate(const trial_token * tokens, int blocks) {
    const double per_byte = ns_per_byte(tokens, blocks * TRIAL_BLOCK);
    double gains[TRIAL_MOST_BLOCKS];
    for (int b = 0; b < blocks; b++) gains[b] = block_gain(tokens + b * TRIAL_BLOCK, prefetch_trial_with(b * TRIAL_BLOCK), per_byte);
    return trimmed_mean(gains, blocks);
}

static trial_estimate joined(const trial_estimate & before, const trial_estimate & now) {
    const double error = FADES * before.error;
    if (std::isinf(error) || std::fabs(before.gain - now.gain) > CONTRADICTS * std::hypot(error, now.error)) return now;
    const double a = 1 / (error * error), b = 1 / (now.error * now.error);
    return {(a * before.gain + b * now.gain) / (a + b), 1 / std::sqrt(a + b)};
}

bool prefetch_trial_on(const prefetch_trial & trial) {
    if (trial.state == TRIAL_MEASURING) return prefetch_trial_with(trial.tokens);
    return trial.state != TRIAL_OFF;
}

static void end_trial(prefetch_trial & trial, const trial_estimate & found) {
    trial.known = found;
    trial.state = found.gain > SURE_GAIN * found.error ? TRIAL_ON : TRIAL_OFF;
    trial.rest = std::fabs(found.gain) > FAR * found.error ? LONG_REST : SHORT_REST;
    trial.tokens = 0;
}

static void measure(prefetch_trial & trial, const trial_token & token) {
    trial.measured[trial.tokens++] = token;
    const int blocks = int(trial.tokens / TRIAL_BLOCK);
    if (trial.tokens % TRIAL_BLOCK != 0 || blocks < FEWEST_BLOCKS) return;
    const trial_estimate found = joined(trial.known, prefetch_trial_estimate(trial.measured, blocks));
    trial.gain.set(found.gain);
    trial.error.set(found.error);
    const bool sure = found.gain > SURE_GAIN * found.error || found.gain < -SURE_LOSS * found.error;
    if (sure || blocks == TRIAL_MOST_BLOCKS) end_trial(trial, found);
}

void prefetch_trial_renew(prefetch_trial & trial) {
    trial.state = TRIAL_WARMING;
    trial.tokens = 0;
}

void prefetch_trial_add(prefetch_trial & trial, int64_t ns, int64_t missed_bytes) {
    if (trial.state == TRIAL_MEASURING) return measure(trial, {double(ns), double(missed_bytes)});
    if (++trial.tokens < (trial.state == TRIAL_WARMING ? WARM_TOKENS : trial.rest)) return;
    trial.state = TRIAL_MEASURING;
    trial.tokens = 0;
}
