/**
 * What pre-fetch gains in tokens/s: the reference model with 4 GiB of experts, 40% of them cached, decoded with pre-fetch off,
 * on, and where it is measured to pay (auto), on disks of the speed that phones carry; the three in turns in one run, all at
 * the same memory. The disk is paced by the reader (see `engine bench --help`); with --throttled by the kernel, under which a
 * disk makes up for its pauses, so that reading ahead gains nothing and auto should find that out. A map that `model
 * fit-prefetch` left beside the model (`<model>.prefetch`) is used.
 *
 * Needs root, 5 GB of disk, and a machine with nothing else running: an arm beside which more than 0.15 processors were busy
 * does not count. A run of one profile and strength is up to three
 * minutes. With --results the runs are kept in a file and those that come later are added; figures are medians over all of them.
 *
 *   node test/bench/prefetch.mjs [--profiles ufs2.1,ufs3.1] [--lambdas 0,0.2] [--runs 1] [--tokens 160] [--arms off,on,auto] [--throttled] [--results FILE] [--json]
 *   node test/bench/prefetch.mjs --results runs.json --profiles ''     # what they come to
 */
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { fixtures, median, moefleet, numbers, percent, readFlags, widened } from './shared.mjs';

const values = readFlags({
  width: { type: 'string', default: '36864' }, 'work-dir': { type: 'string' }, profiles: { type: 'string', default: 'ufs2.1,ufs3.1' },
  lambdas: { type: 'string', default: '0,0.2' }, 'top-j': { type: 'string', default: '1' }, arms: { type: 'string', default: 'off,on,auto' },
  runs: { type: 'string', default: '1' }, tokens: { type: 'string', default: '160' }, 'warm-up': { type: 'string', default: '16' },
  threads: { type: 'string', default: '2' }, text: { type: 'string', default: fixtures.text }, throttled: { type: 'boolean', default: false },
  results: { type: 'string' }, json: { type: 'boolean', default: false },
});
const kept = values.results && existsSync(values.results) ? JSON.parse(readFileSync(values.results, 'utf8')) : [];

function run(profile, lambda) {
  const model = widened(Number(values.width), values['work-dir']);
  const arms = values.arms.split(',').flatMap((mode) => ['--arm', `${mode}:lambda=${lambda},topJ=${values['top-j']},eviction=adaptive,prefetch=${mode}`]);
  const report = moefleet('engine', 'bench', '--model', model, '--text', values.text, '--profile', profile, '--capacity', '40%', '--threads', values.threads,
    '--tokens', values.tokens, '--warm-up', values['warm-up'], '--runs', values.runs, '--arms', '', ...(values.throttled ? [] : ['--paced']), ...arms);
  return {
    disk: `${profile}, ${values.throttled ? 'throttled' : 'paced'}`, lambda,
    arms: report.arms.map((arm) => ({
      mode: arm.name, void: arm.void, tokensPerSecond: arm.tokensPerSecond?.median, msPerToken: arm.msPerToken?.median, missRate: arm.missRate?.median,
      megabytesPerToken: arm.flashBytesPerToken?.median / 1e6, floor: arm.floor, others: arm.othersProcessors?.max,
      active: arm.counters?.prefetchActive, gain: arm.counters?.prefetchGain, gainError: arm.counters?.prefetchGainError, fitted: arm.counters?.prefetchFitted,
      wastedMegabytesPerToken: arm.counters ? arm.counters.layers.reduce((sum, { prefetchWastedBytes }) => sum + prefetchWastedBytes, 0) / 1e6 / Number(values.tokens) : null,
    })),
  };
}

for (const profile of values.profiles.split(',').filter(Boolean)) {
  for (const lambda of numbers(values, 'lambdas')) {
    process.stderr.write(`${profile}, λ ${lambda}\n`);
    kept.push(run(profile, lambda));
    if (values.results) writeFileSync(values.results, `${JSON.stringify(kept, null, 1)}\n`);
  }
}

const numbersOf = (list) => list.filter((each) => typeof each === 'number');
/** Beside something else that ran, a figure is worth nothing. */
const QUIET = 0.15;
const counts = (arm) => arm.void === null && arm.others <= QUIET;
const middle = (list) => (numbersOf(list).length === 0 ? null : median(numbersOf(list)));

/** Runs of one disk and strength, each arm against the run's own without pre-fetch. */
function summed(runs) {
  const [{ disk, lambda, arms }] = runs;
  return arms.map(({ mode }) => {
    const each = runs.flatMap((run) => run.arms.filter((arm) => arm.mode === mode && counts(arm)));
    const over = runs.flatMap((run) => {
      const [arm, off] = [mode, 'off'].map((name) => run.arms.find((one) => one.mode === name && counts(one)));
      return arm && off ? [arm.tokensPerSecond / off.tokensPerSecond - 1] : [];
    });
    const figures = ['tokensPerSecond', 'msPerToken', 'missRate', 'megabytesPerToken', 'wastedMegabytesPerToken'];
    return {
      disk, lambda, mode, runs: each.length, over: middle(over), ...Object.fromEntries(figures.map((key) => [key, middle(each.map((arm) => arm[key]))])),
      floorSumMs: middle(each.map(({ floor }) => floor?.sumMs)), floorLargerMs: middle(each.map(({ floor }) => floor?.largerMs)),
      verdicts: each.map(({ active, gain, gainError }) => ({ active, gain, gainError })),
    };
  });
}

const kinds = [...new Set(kept.map(({ disk, lambda }) => `${disk} ${lambda}`))];
const groups = kinds.map((kind) => kept.filter(({ disk, lambda }) => `${disk} ${lambda}` === kind));
const rows = groups.flatMap(summed);
if (values.json) process.stdout.write(`${JSON.stringify(rows, null, 2)}\n`);
else {
  const fixed = (value, digits) => (typeof value === 'number' ? value.toFixed(digits) : '-');
  console.table(rows.map((row) => ({
    disk: row.disk, λ: row.lambda, 'pre-fetch': row.mode, runs: row.runs, 'tokens/s': fixed(row.tokensPerSecond, 2), 'ms/token': fixed(row.msPerToken, 1),
    'over off': row.over === null ? '-' : percent(row.over), 'MB/token': fixed(row.megabytesPerToken, 0), 'read in vain': fixed(row.wastedMegabytesPerToken, 1),
    'floor: sum': fixed(row.floorSumMs, 0), larger: fixed(row.floorLargerMs, 0),
    verdict: row.mode === 'auto' ? row.verdicts.map(({ active, gain, gainError }) => `${active ? 'on' : 'off'} ${gain ? `${percent(gain)} ± ${percent(gainError)}` : 'untried'}`).join(', ') : '',
  })));
}
