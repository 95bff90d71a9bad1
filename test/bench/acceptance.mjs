/**
 * The engine against plain LRU and against the stock library, as a device would see it: the reference model with 4 GiB of
 * experts, 40% of them cached, two threads, disks of the speed that phones carry, all arms at the same memory. Then what
 * the bent routing costs in perplexity, and how far it cuts misses. Prints every figure beside what was asked of it.
 *
 * Needs root (control groups), 5 GB of disk, 6 GB of free memory, and a machine with nothing else running: the column
 * OTHERS tells how many processors were busy with something else. A round of a profile takes two minutes, the perplexities
 * three, besides making the model once. With --results the rounds are kept in a file and those that come later are added,
 * so that they can be taken one by one, of all arms or of some (--arms); figures are medians over all of them.
 *
 *   node test/bench/acceptance.mjs [--profiles ufs2.1,ufs3.1] [--runs 2] [--paced] [--json]
 *   node test/bench/acceptance.mjs --results rounds.json --profiles ufs2.1 --runs 1 --skip-quality   # one more round
 *   node test/bench/acceptance.mjs --results rounds.json --profiles '' --skip-quality                # what they come to
 */
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { fixtures, median, moefleet, percent, readFlags, show, widened } from './shared.mjs';

const values = readFlags({
  width: { type: 'string', default: '36864' }, 'work-dir': { type: 'string' }, profiles: { type: 'string', default: 'ufs2.1,ufs3.1' },
  paced: { type: 'boolean', default: false }, text: { type: 'string', default: fixtures.text }, tokens: { type: 'string', default: '60' },
  'stock-tokens': { type: 'string', default: '24' }, 'warm-up': { type: 'string', default: '12' }, runs: { type: 'string', default: '2' },
  threads: { type: 'string', default: '2' }, 'quality-tokens': { type: 'string', default: '16384' }, 'skip-quality': { type: 'boolean', default: false },
  arms: { type: 'string' }, 'skip-floor': { type: 'boolean', default: false }, results: { type: 'string' }, json: { type: 'boolean', default: false },
});

/** Strengths that cost less than 1% of perplexity at both capacities, chosen on text the model was trained on: one for all layers, and one for each. */
const bent = { lambda: '0.2', topJ: '1', eviction: 'adaptive' };
const tuned = { lambda: '0.1,0.4,0.25,0.25,0.2,0.15', topJ: '1,1,0,0,0,1', eviction: 'lfu', halfLife: '128' };
const lossless = { lambda: '0', eviction: 'adaptive' };
const PREFETCH = '-prefetch';
const arms = {
  lossless, [`lossless${PREFETCH}`]: { ...lossless, prefetch: 'on' }, full: bent, [`full${PREFETCH}`]: { ...bent, prefetch: 'on' },
  tuned, [`tuned${PREFETCH}`]: { ...tuned, prefetch: 'on' },
};
const bending = ['full', 'tuned'];
const chosen = values.arms?.split(',') ?? Object.keys(arms);
const flagsOf = (arm) => Object.entries(arm).map(([name, value]) => `${name}=${value}`).join(',');
const wordsOf = (arm) => Object.entries(arm).flatMap(([name, value]) => [`--${name.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`)}`, value]);

/** One round of all arms. The stock library cannot be paced, and is held to the profile by the throttle alone. */
function benched(model, profile) {
  return moefleet('engine', 'bench', '--model', model, '--text', values.text, '--profile', profile, '--capacity', '40%', '--threads', values.threads,
    '--tokens', values.tokens, '--stock-tokens', values.paced ? values.tokens : values['stock-tokens'], '--warm-up', values['warm-up'], '--runs', '1', '--arms', values.paced ? 'lru' : 'stock,lru',
    ...(values.paced ? ['--paced'] : []), ...(values['skip-floor'] ? ['--no-floor'] : []), ...chosen.flatMap((name) => ['--arm', `${name}:${flagsOf(arms[name])}`]));
}

/** Misses and perplexity of the bent routing against plain LRU and the model's own, on the narrow model: the same routing, much faster. */
function quality(capacity) {
  const scored = (...more) => moefleet('engine', 'eval', '--model', fixtures.model, '--text', values.text, '--tokens', values['quality-tokens'],
    '--capacity', String(capacity), '--threads', values.threads, ...more);
  const lru = scored('--lambda', '0', '--eviction', 'lru');
  return bending.map((name) => {
    const ours = scored(...wordsOf(arms[name]));
    return {
      arm: name, capacity, missRateLru: lru.missRate, missRate: ours.missRate, missesCut: 1 - ours.misses / lru.misses,
      perplexityLoss: Math.expm1(ours.crossEntropy - lru.crossEntropy),
    };
  });
}

const at = (value, path) => path.reduce((inner, key) => inner?.[key], value);
const medianOf = (list) => (list.length === 0 ? null : median(list));

/** Rounds of one profile and one way of holding the disk, as the medians of each arm's figures. */
function merged(rounds) {
  const diskOf = ({ conditions }) => `${conditions.profile}${conditions.paceBytesPerSecond === null ? '' : ', paced'}`;
  const disks = [...new Set(rounds.map(diskOf))].map((disk) => [disk, rounds.filter((round) => diskOf(round) === disk)]);
  return disks.map(([disk, group]) => ({
    disk, profile: group[0].conditions.profile, rounds: group.length,
    arms: Object.fromEntries([...new Set(group.flatMap((round) => round.arms.map(({ name }) => name)))].map((name) => {
      const each = (...path) => group.flatMap(({ arms: all }) => at(all.find((arm) => arm.name === name), path) ?? []);
      const tokensPerSecond = each('tokensPerSecond', 'median');
      return [name, {
        rounds: tokensPerSecond.length, tokensPerSecond: medianOf(tokensPerSecond), lowest: Math.min(...tokensPerSecond), highest: Math.max(...tokensPerSecond),
        msPerToken: medianOf(each('msPerToken', 'median')), missRate: medianOf(each('missRate', 'median')),
        megabytesPerToken: medianOf(each('flashBytesPerToken', 'median').map((bytes) => bytes / 1e6)),
        overLru: medianOf(each('speedup', 'overReference', 'median')), overStock: medianOf(each('speedup', 'overStock', 'median')),
        floorMs: medianOf(each('floor', 'sumMs')), overFloor: medianOf(each('floor', 'overSum')), overLarger: medianOf(each('floor', 'overLarger')),
        diskMegabytesPerSecond: medianOf(each('floor', 'diskBytesPerSecond').map((bytes) => bytes / 1e6)),
        peakMegabytes: medianOf(each('cgroupPeakBytes', 'median').map((bytes) => bytes / 1e6)), othersProcessors: Math.max(...each('othersProcessors', 'max')),
      }];
    })),
    // Within a round, where both did the same work.
    prefetchOver: Object.fromEntries(['lossless', ...bending].map((name) => {
      const speed = (round, arm) => round.arms.find((each) => each.name === arm)?.tokensPerSecond?.median;
      return [name, medianOf(group.flatMap((round) => (speed(round, name) && speed(round, name + PREFETCH) ? [speed(round, name + PREFETCH) / speed(round, name)] : [])))];
    })),
  }));
}

/** What was asked, with the figure: `met` null where there is none. */
function checks(benches, qualities) {
  const rows = [];
  const check = (what, measured, asked, atLeast) => rows.push({ what, measured, asked: `${atLeast ? '≥' : '≤'} ${asked}`, met: measured === null ? null : atLeast ? measured >= asked : measured <= asked });
  for (const { disk, profile, arms: measured, prefetchOver } of benches) {
    const best = (names, key) => medianOf([Math.max(...names.map((name) => measured[name]?.[key] ?? -Infinity))].filter(Number.isFinite));
    for (const name of bending) check(`${disk}: ${name} against LRU, tokens/s`, measured[name]?.overLru ?? null, profile === 'ufs3.1' ? 2.2 : 2.5, true);
    check(`${disk}: everything against the stock library, tokens/s`, best(bending, 'overStock'), 6, true);
    check(`${disk}: λ 0 against the stock library, tokens/s`, best(['lossless'], 'overStock'), 3, true);
    for (const name of ['lru', 'lossless', ...bending]) check(`${disk}: ${name}, time over the floor's sum`, measured[name]?.overFloor ?? null, 1.15, false);
    for (const name of ['lossless', ...bending]) {
      check(`${disk}: ${name}${PREFETCH}, time over the floor's sum`, measured[name + PREFETCH]?.overFloor ?? null, 1, false);
      check(`${disk}: ${name}, tokens/s with pre-fetch over without`, prefetchOver[name], 1, true);
    }
  }
  for (const { arm, capacity, missesCut, perplexityLoss } of qualities) {
    check(`${arm}, capacity ${capacity}: misses cut, against LRU`, missesCut, capacity >= 16 ? 0.8 : 0.7, true);
    check(`${arm}, capacity ${capacity}: perplexity lost`, perplexityLoss, 0.01, false);
  }
  return rows;
}

const kept = values.results && existsSync(values.results) ? JSON.parse(readFileSync(values.results, 'utf8')) : { rounds: [], qualities: [] };
const keep = () => { if (values.results) writeFileSync(values.results, `${JSON.stringify(kept)}\n`); };

for (const profile of values.profiles.split(',').filter(Boolean)) {
  const model = widened(Number(values.width), values['work-dir']);
  for (let run = 0; run < Number(values.runs); run += 1) {
    process.stderr.write(`${profile}, round ${run + 1}\n`);
    const report = benched(model, profile);
    if (!values.json) process.stdout.write(`${show(report)}\n`);
    // Where the model lies on this machine is nobody's business.
    kept.rounds.push({ ...report, model: { ...report.model, path: report.model.path.split('/').pop() }, arms: report.arms.map((arm) => ({ ...arm, counters: null })) });
    keep();
  }
}
if (!values['skip-quality']) {
  process.stderr.write('perplexity and misses\n');
  kept.qualities = [13, 16].flatMap(quality);
  keep();
}
const benches = merged(kept.rounds);
const result = { arms: Object.fromEntries(Object.entries(arms).map(([name, flags]) => [name, flagsOf(flags)])), benches, qualities: kept.qualities, checks: checks(benches, kept.qualities) };
if (values.json) process.stdout.write(`${JSON.stringify(result, null, 2)}\n`);
else {
  for (const { disk, rounds, arms: measured } of benches) {
    process.stdout.write(`${disk}, medians of ${rounds} rounds\n`);
    console.table(Object.fromEntries(Object.entries(measured).map(([name, figures]) => [name, Object.fromEntries(Object.entries(figures).map(([key, value]) => [key, value === null ? '-' : Number(value.toFixed(3))]))])));
  }
  console.table(kept.qualities.map((row) => ({
    arm: row.arm, capacity: row.capacity, 'LRU misses': percent(row.missRateLru), 'ours misses': percent(row.missRate), cut: percent(row.missesCut), 'perplexity': `+${percent(row.perplexityLoss)}`,
  })));
  for (const { what, measured, asked, met } of result.checks) {
    process.stdout.write(`${met === null ? 'not measured' : met ? 'met    ' : 'NOT MET'}  ${what}: ${measured === null ? '-' : measured.toFixed(3)} (asked: ${asked})\n`);
  }
}
