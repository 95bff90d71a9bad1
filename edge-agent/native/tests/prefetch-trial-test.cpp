// Whether `auto` finds out what pre-fetch is worth, on disks that are simulated: a token takes its arithmetic and the bytes it
// missed, at a speed that wanders by more than the gain.
#include "prefetch-trial.h"

#include "check.h"

#include <algorithm>
#include <memory>
#include <vector>

struct dice {
    uint64_t state;
    explicit dice(uint64_t seed) : state(seed * 0x9e3779b97f4a7c15u) {}
    double uniform() {
        state = state * 6364136223846793005u + 1442695040888963407u;
        return double(state >> 11) / double(uint64_t(1) << 53);
    }
    double normal() {  // of variance 1, by the sum of twelve
        double sum = -6;
        for (int i = 0; i < 12; i++) sum += uniform();
        return sum;
    }
};

// Its speed is a random walk, within a factor of 1.6 either way, times noise with a memory of some five tokens of which one
// standard deviation is `noise`; one token in fifty takes several times as long.
struct wandering_disk {
    dice random;
    double noise, walk = 0, swing = 0;
    wandering_disk(uint64_t seed, double noise) : random(seed), noise(noise) {}
    double slowness() {
        walk = std::max(-0.5, std::min(0.5, walk + 0.01 * random.normal()));
        swing = 0.8 * swing + 0.6 * noise * random.normal();
        return std::exp(walk + swing) * (random.uniform() < 0.02 ? 3 + 5 * random.uniform() : 1);
    }
};

static const int64_t EXPERT = 22 << 20;

struct ending { bool on; trial_estimate known; };

static void decode(prefetch_trial & trial, wandering_disk & disk, double gain, int tokens) {
    for (int i = 0; i < tokens; i++) {
        const double misses = std::floor(16 * disk.random.uniform());
        const double ns = (40 + 25 * misses * disk.slowness()) * (1 + 0.02 * disk.random.normal()) * 1e6;
        prefetch_trial_add(trial, int64_t(prefetch_trial_on(trial) ? ns * (1 - gain) : ns), int64_t(misses) * EXPERT);
    }
}

// Goes on to the end of a trial that is under way.
static int64_t trial_tokens(prefetch_trial & trial, wandering_disk & disk, double gain) {
    int64_t tokens = 0;
    for (; trial.state == TRIAL_WARMING || trial.state == TRIAL_MEASURING; tokens++) decode(trial, disk, gain, 1);
    return tokens;
}

static ending settled(prefetch_trial & trial, wandering_disk & disk, double gain) {
    trial_tokens(trial, disk, gain);
    return {trial.state == TRIAL_ON, trial.known};
}

struct summary { int on = 0; double gain = 0, error = 0; };  // how many of SEEDS ended on; means

static const int SEEDS = 200;

// After 2,000 tokens, several trials, of which pre-fetch saves the share `gain` where it is on.
static summary over_seeds(double noise, double gain) {
    summary sum;
    for (int seed = 1; seed <= SEEDS; seed++) {
        wandering_disk disk(uint64_t(seed), noise);
        auto trial = std::make_unique<prefetch_trial>();
        decode(*trial, disk, gain, 2000);
        const ending end = settled(*trial, disk, gain);
        sum.on += end.on;
        sum.gain += end.known.gain / SEEDS;
        sum.error += end.known.error / SEEDS;
    }
    printf("noise %.2f, gain %+.3f: on in %d of %d, found %+.4f with a standard error of %.4f\n", noise, gain, sum.on, SEEDS, sum.gain, sum.error);
    return sum;
}

static void a_disk_that_wanders_misleads_no_trial() {
    CHECK(over_seeds(0.05, 0).on <= SEEDS / 10);
    CHECK(over_seeds(0.1, 0).on <= SEEDS / 10);
    CHECK(over_seeds(0.05, 0.03).on >= SEEDS * 9 / 10);
    CHECK(over_seeds(0.1, 0.03).on >= SEEDS * 2 / 3);
    CHECK(over_seeds(0.05, -0.03).on <= SEEDS / 100);
    CHECK(over_seeds(0.1, -0.03).on <= SEEDS / 100);
}

static void what_was_known_gives_way_to_what_is() {
    for (const double first : {0.05, -0.05}) {
        int changed = 0;
        for (int seed = 1; seed <= 50; seed++) {
            wandering_disk disk(uint64_t(seed), 0.05);
            auto trial = std::make_unique<prefetch_trial>();
            decode(*trial, disk, first, 1000);
            decode(*trial, disk, -first, 6000);
            changed += settled(*trial, disk, -first).on == (first < 0);
        }
        CHECK(changed >= 45);
    }
}

static void a_trial_is_shorter_by_what_is_known() {
    int64_t first = 0, renewed = 0;
    for (int seed = 1; seed <= 50; seed++) {
        wandering_disk disk(uint64_t(seed), 0.05);
        auto trial = std::make_unique<prefetch_trial>();
        first += trial_tokens(*trial, disk, 0.03);
        prefetch_trial_renew(*trial);
        renewed += trial_tokens(*trial, disk, 0.03);
    }
    printf("tokens until sure: %lld, again %lld\n", (long long) first / 50, (long long) renewed / 50);
    CHECK(renewed < first);
}

// Blocks of tokens that take `ns(i)` and miss `misses(i)` experts.
template <typename times, typename counts> static trial_estimate estimate(int blocks, double gain, times ns, counts misses) {
    std::vector<trial_token> tokens;
    for (int i = 0; i < blocks * TRIAL_BLOCK; i++) {
        tokens.push_back({ns(i) * (prefetch_trial_with(i) ? 1 - gain : 1), double(misses(i)) * EXPERT});
    }
    return prefetch_trial_estimate(tokens.data(), blocks);
}

static void drift_misses_and_disturbances_are_no_gain() {
    const auto none = [](int) { return 0; };
    const auto steady = [](int) { return 1e8; };
    CHECK_NEAR(estimate(8, 0.1, steady, none).gain, 0.1 / 0.95, 1e-9);  // of the mean of both ways
    CHECK_NEAR(estimate(8, 0, [](int i) { return 1e8 + 1e6 * i; }, none).gain, 0, 1e-9);
    // Twice the misses with pre-fetch.
    const auto misses = [](int i) { return (prefetch_trial_with(i) ? 4 : 2) + i % 2; };
    CHECK_NEAR(estimate(8, 0, [&](int i) { return 4e7 + 2.5e7 * misses(i); }, misses).gain, 0, 1e-9);
    // One token that takes ten times as long.
    CHECK_NEAR(estimate(8, 0, [](int i) { return i == 17 ? 1e9 : 1e8; }, none).gain, 0, 1e-9);
}

static void both_ways_share_a_trial_evenly() {
    for (int block = 0; block < TRIAL_MOST_BLOCKS; block++) {
        int with = 0;
        for (int i = 0; i < TRIAL_BLOCK; i++) with += prefetch_trial_with(block * TRIAL_BLOCK + i);
        CHECK_EQUAL(with, TRIAL_BLOCK / 2);
    }
}

int main() {
    both_ways_share_a_trial_evenly();
    drift_misses_and_disturbances_are_no_gain();
    a_disk_that_wanders_misleads_no_trial();
    what_was_known_gives_way_to_what_is();
    a_trial_is_shorter_by_what_is_known();
    return checks_done();
}
