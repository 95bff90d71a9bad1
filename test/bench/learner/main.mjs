/**
 * Judges the learner on a simulated fleet, for which the best setting of every device is known by search. The devices and
 * their clocks are simulated (device.mjs); what they miss and what λ costs are recordings of the real engine on real texts
 * (recording.mjs), the surface is measured on other texts, and everything that decides is the learner's own code.
 *
 *   npm run bench:learner -- [--devices 500] [--seeds 20] [--first-seed 1] [--proposals 10] [--shift-proposals 5] [--recording FILE]
 *     [--expert-bytes 6291456] [--lying 0.05 | --lying-class NAME] [--json]
 *
 * meanOfOptimum    the fleet's tokens/s after the proposals, of what a search finds for each device within the budget
 * certainOptimum   what a learner would reach that knows every device's speed, but quality no surer than the surface does
 * overBestSingle   how much faster than the best λ, topJ and capacity that are one for all (and fit every device)
 * overLambdaOnly   how much faster than the best λ and topJ that are one for all, each device with its largest cache
 * budgetKept       share of device-hours at a setting whose true loss is at most 1% perplexity in the mean of the texts, 2% in the worst
 * afterShift       as meanOfOptimum, after every device has got other work and a third of them slower flash
 * adversarialHarm  by how much the other devices of any class are further from their optimum with liars among them, or with a class
 *                  of nothing but liars, than without
 */
import { join } from 'node:path';
import { mean } from '../reproduce/statistics.mjs';
import { readFlags, refuse } from '../shared.mjs';
import { CLASSES } from './device.mjs';
import { runFleet, TruthTable } from './fleet-run.mjs';
import { surfaceOf } from './learner-side.mjs';
import { Recording } from './recording.mjs';

const here = new URL('.', import.meta.url).pathname;
const values = readFlags({
  devices: { type: 'string', default: '500' }, seeds: { type: 'string', default: '20' }, 'first-seed': { type: 'string', default: '1' }, proposals: { type: 'string', default: '10' }, 'shift-proposals': { type: 'string', default: '5' },
  recording: { type: 'string', default: join(here, 'recordings', 'tinymoe-17m-q8_0.json') }, 'expert-bytes': { type: 'string', default: String(6 << 20) }, lying: { type: 'string', default: '0.05' }, 'lying-class': { type: 'string' },
  json: { type: 'boolean', default: false },
});
const lyingClass = values['lying-class'];
if (lyingClass !== undefined && !(lyingClass in CLASSES)) refuse(`--lying-class: "${lyingClass}" is none of ${Object.keys(CLASSES).join(', ')}`);
const recording = Recording.read(values.recording);
const expertBytes = Number(values['expert-bytes']);
const shape = { experts: recording.experts, topK: recording.topK, expertBytes: new Array(recording.layers).fill(expertBytes) };
const surface = surfaceOf(recording, shape);
const truths = new TruthTable(recording);

// Ctrl-C ends after the seed under way, with the report of those that are done.
let stopping = false;
process.once('SIGINT', () => { stopping = true; });
const runs = [];
const first = Number(values['first-seed']);
for (let seed = first; seed < first + Number(values.seeds) && !stopping; seed += 1) {
  const options = { seed, devices: Number(values.devices), proposals: Number(values.proposals), shiftProposals: Number(values['shift-proposals']), lying: Number(values.lying), lyingClass, expertBytes };
  const run = runFleet(recording, truths, surface, shape, { ...options, truthful: false });
  const without = runFleet(recording, truths, surface, shape, { ...options, truthful: true, shiftProposals: 1 });
  runs.push({ ...run, harm: Object.fromEntries(Object.entries(run.byClass).map(([name, share]) => [name, without.byClass[name] - share])) });
  process.stderr.write(`\rseed ${seed - first + 1} of ${values.seeds}: ${(run.meanOfOptimum * 100).toFixed(1)}% of the optimum    `);
  await new Promise((resolve) => { setImmediate(resolve); });
}
process.stderr.write('\n');

const over = (read) => mean(runs.map(read));
const classes = Object.keys(runs[0].byClass);
const harmByClass = Object.fromEntries(classes.map((name) => [name, over((run) => run.harm[name])]));
const report = {
  devices: Number(values.devices), seeds: runs.length,
  meanOfOptimum: over((run) => run.meanOfOptimum), worstSeed: Math.min(...runs.map((run) => run.meanOfOptimum)), overBestSingle: over((run) => run.overBestSingle),
  overLambdaOnly: over((run) => run.overLambdaOnly), budgetKept: over((run) => run.budgetKept), ownMixKept: over((run) => run.ownMixKept),
  afterShift: over((run) => run.afterShift), adversarialHarm: Math.max(...Object.values(harmByClass)),
  certainOptimum: over((run) => run.sure), beforeLearning: over((run) => run.plain), course: runs[0].course.map((_, i) => over((run) => run.course[i])), justShifted: over((run) => run.shifted),
  byClass: Object.fromEntries(classes.map((name) => [name, over((run) => run.byClass[name])])), harmByClass,
  liars: over((run) => run.liars), liarsQuarantined: over((run) => run.liarsQuarantined), honestQuarantined: over((run) => run.honestQuarantined),
};
const percent = (share) => `${(share * 100).toFixed(1)}%`;
process.stdout.write(values.json ? `${JSON.stringify(report, null, 2)}\n` : [
  `${report.devices} devices x ${report.seeds} seeds, ${values.proposals} proposals each`, '',
  '| | found | wanted |', '|---|---|---|',
  `| of the optimum (before learning ${percent(report.beforeLearning)}; worst seed ${percent(report.worstSeed)}) | ${percent(report.meanOfOptimum)} | 95% |`,
  `| of the optimum, the best that the surface's upper bounds allow | ${percent(report.certainOptimum)} | |`,
  `| over the best single λ and capacity | ${percent(report.overBestSingle)} | 15% |`,
  `| over the best single λ with each device's largest cache | ${percent(report.overLambdaOnly)} | above 0 |`,
  `| device-hours within the quality budget | ${percent(report.budgetKept)} | 99% |`,
  `| after a shift (at once ${percent(report.justShifted)}), ${values['shift-proposals']} proposals later | ${percent(report.afterShift)} | 90% |`,
  `| worst loss of a class by liars among it | ${percent(report.adversarialHarm)} | about 0 |`, '',
  `proposal by proposal: ${report.course.map(percent).join(', ')}`,
  `by class: ${classes.map((name) => `${name} ${percent(report.byClass[name])}`).join(', ')}`,
  `quarantined: ${report.liarsQuarantined.toFixed(1)} of ${report.liars.toFixed(1)} liars, ${report.honestQuarantined.toFixed(1)} honest devices`, '',
].join('\n'));
