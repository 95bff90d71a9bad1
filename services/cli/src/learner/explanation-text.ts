/** An explanation for a reader who has not seen one before: the answer first, then what it rests on, then the figures. */
import { formatSize } from '@moefleet/runtime';
import { capacityText, fixed, NONE, pairs, percent, table } from '../table';
import { ago } from '../commands/devices';
import type { Bent, Explanation, RoutingDrift, SettingRow } from './explanation';

export function explanationText(one: Explanation, nowMs: number): string {
  const head = `${one.device}${one.model ? `, model ${one.model}` : ''}\n`;
  if (one.reason === null) return `${head}\nno learner has looked at it yet; start one with \`moefleet learner run\`, or queue a run with \`moefleet learner now\`\n`;
  const parts = [
    `${head}\n${one.proposed ? 'CHOSEN' : 'NOTHING IS PROPOSED'}: ${one.reason}\n`,
    section('WHAT THE CHOICE RESTS ON', pairs(inputRows(one, nowMs))),
    one.chosen ? section('THE SETTINGS COMPARED (losses in perplexity; "at most" is the one-sided 95% bound, which has to stay within the budget)', settingsTable(one)) : '',
    one.measured.length > 0 ? section(`WHAT WAS MEASURED AT CAPACITY ${capacityText(one.chosen!.capacities)} (± one standard error)`, measuredTable(one)) : '',
    one.routing && one.routing.workloadBits.length + one.routing.lambdaBits.length > 0 ? section('HOW FAR THE USE OF EXPERTS HAS MOVED (Jensen-Shannon divergence in bits, 0 to 1)', layersTable(one.routing)) : '',
    one.outcomes.length > 0 ? section('PREDICTED AND OBSERVED, oldest first', outcomesTable(one, nowMs)) : '',
  ];
  return parts.filter(Boolean).join('\n');
}

function section(title: string, text: string): string {
  return `${title}\n${text}`;
}

function inputRows({ budgets, memory, speed, missRatio, chosen, routing, quarantine }: Explanation, nowMs: number): [string, string][] {
  const rows: [string, string][] = [];
  if (budgets) rows.push(['quality', `at most ${signed(budgets.meanPercent)} perplexity in the mean over the texts and ${signed(budgets.worstPercent)} in the worst; the device allows λ up to ${budgets.maxLambda}`]);
  if (memory) {
    const split = memory.split === 'even' ? 'evenly over the layers' : 'over the layers by what they save';
    const bad = memory.badBytes ? `, ran short at ${formatSize(memory.badBytes)}` : '';
    rows.push(['memory', `capacity ${capacityText(memory.capacities)} of ${memory.experts} experts, ${formatSize(memory.cacheBytes)} (${memory.from}), split ${split}; short ${memory.shortages} times${bad}`]);
  }
  rows.push(['speed', speed ? speedText(speed) : 'nothing is known yet: fewer misses are taken for faster']);
  if (speed?.readMs && speed.readBytes) {
    rows.push(['reads', `${speed.readMs.toFixed(2)} ms for ${formatSize(speed.readBytes)} each; ${percent(speed.hiddenShare, 0)} of it is hidden behind other reads and compute`]);
  }
  if (speed) rows.push(['drift of speed', speed.drift ?? 'none seen']);
  if (missRatio !== null && chosen) rows.push(['its own misses', ownMissesText(chosen.missRate, missRatio)]);
  if (routing) rows.push(...routingRows(routing, nowMs));
  rows.push(['telemetry', quarantine ? `QUARANTINED ${ago(nowMs - quarantine.sinceMs)}, ${quarantine.windows} windows set aside: ${quarantine.reason}` : 'believed']);
  return rows;
}

function ownMissesText(missRate: number, ratio: number): string {
  if (Math.abs(ratio - 1) < 0.005) return 'as many as the texts have, as far as it was seen';
  const why = ratio > 1 ? ': every answer begins with a cache that the one before has left, a text goes on' : '';
  return `it will miss ${percent(missRate)} of slots, going by what it has missed so far, where the texts miss ${percent(missRate / ratio)}${why}`;
}

function routingRows({ causes, sinceMs, reason, massLost, tokens, leastMeasured, mostMeasured, entropyChange, hold }: RoutingDrift, nowMs: number): [string, string][] {
  const texts = mostMeasured === null ? 'not measured on the texts at this setting' : `${leastMeasured!.toFixed(4)} to ${mostMeasured.toFixed(4)} on the texts at the same setting`;
  const rows: [string, string][] = [
    ['drift of routing', causes.length > 0 ? `${causes.join(', ')} (${ago(nowMs - sinceMs!)}): ${reason}` : reason || 'none seen'],
    ['mass lost', tokens > 0 ? `${massLost.toFixed(4)} of softmax mass per routing event, over ${Math.round(tokens)} tokens of late; ${texts}` : 'not seen yet under the setting in force'],
  ];
  if (entropyChange !== null) rows.push(['router entropy', `${entropyChange >= 0 ? '+' : ''}${entropyChange.toFixed(2)} bits since the setting came`]);
  if (hold) {
    const anew = hold.measuredAnew ? 'measured anew since, and the texts still lose less: give the learner a text like what the device does (--text)' : 'that setting is to be measured anew';
    rows.push(['λ HELD BACK', `at ${hold.lambda} or less, ${ago(nowMs - hold.sinceMs)}, for ${formatMinutes(hold.untilMs - nowMs)} more: at ${hold.seenUnder.setting} it lost ${hold.factor.toFixed(2)} times what any text loses; ${anew}`]);
  }
  return rows;
}

function formatMinutes(ms: number): string {
  const minutes = Math.max(0, Math.round(ms / 60_000));
  return minutes < 90 ? `${minutes} min` : `${(minutes / 60).toFixed(1)} h`;
}

/** Divergence of expert use, layer by layer. */
function layersTable({ workloadBits, lambdaBits }: RoutingDrift): string {
  const bits = (value: number | undefined) => (value === undefined ? NONE : value.toFixed(3));
  const rows = Array.from({ length: Math.max(workloadBits.length, lambdaBits.length) }, (_, layer) => [String(layer), bits(workloadBits[layer]), bits(lambdaBits[layer])]);
  return table(['MOE LAYER', 'WANTED NOW AND WHEN λ CAME', 'GOT AND WANTED'], rows, [0, 1, 2]);
}

function speedText(speed: NonNullable<Explanation['speed']>): string {
  const own = `${speed.windows} ${speed.windows === 1 ? 'window' : 'windows'} of its own`;
  const one = speed.priorDevices === 1;
  const shared = speed.priorDevices > 0 ? ` and what ${speed.priorDevices} ${one ? 'device' : 'devices'}${speed.deviceClass ? ` of class ${speed.deviceClass}` : ''} ${one ? 'has told' : 'share'}` : '';
  return `ms per token = ${speed.computeMs.toFixed(2)} ± ${speed.computeSd.toFixed(2)} compute + ${speed.readingMsPerMib.toFixed(2)} ± ${speed.readingSd.toFixed(2)} per MiB missed` +
    `${speed.missMibPerToken === null ? '' : ` (of late ${speed.missMibPerToken.toFixed(2)} MiB per token)`}, from ${own}${shared}`;
}

const BENT_HEADS = ['ROUTING', 'BENT BY', 'TOP J'];

function bentCells({ routing, bend, lambda, topJ }: Bent): string[] {
  return [routing, lambda === 0 ? NONE : bend || NONE, lambda === 0 ? NONE : String(topJ)];
}

function settingsTable({ chosen, baseline, beyond, boundBy }: Explanation): string {
  const row = (name: string, one: SettingRow | null) => (one ? [[
    name, ...bentCells(one), capacityText(one.capacities), percent(one.missRate),
    plusMinus(one.tokensPerSecond, one.tokensPerSecondSd),
    signed(one.loss.meanPercent), signed(one.loss.atMostPercent), one.worst ? `${signed(one.worst.atMostPercent)} (${one.worst.domain})` : NONE, one.measured ? 'yes' : 'between points',
  ]] : []);
  return table(['', ...BENT_HEADS, 'CAPACITY', 'MISS', 'TOKENS/S', 'LOSS', 'AT MOST', 'WORST TEXT AT MOST', 'MEASURED'], [
    ...row('chosen', chosen), ...row('model\'s own routing', baseline), ...row(`beyond the ${boundBy ?? 'bound'}`, beyond),
  ], [2, 3, 4, 5, 6, 7, 8]);
}

function measuredTable({ measured, chosen, domains }: Explanation): string {
  const names = domains.map(({ domain }) => domain);
  return table(['', ...BENT_HEADS, 'MISS', 'TOKENS/S', ...names.map((name) => name.toUpperCase()), ...(names.length > 1 ? ['MEAN'] : [])], measured.map((one) => [
    chosen && one.lambda === chosen.lambda && (one.lambda === 0 || (one.topJ === chosen.topJ && one.routing === chosen.routing)) ? '>' : '', ...bentCells(one),
    percent(one.missRate), fixed(one.tokensPerSecond, 1), ...one.domains.map(({ lossPercent, stderrPercent }) => (one.lambda === 0 ? '0' : `${signed(lossPercent)} ± ${stderrPercent.toFixed(2)}`)),
    ...(names.length > 1 ? [signed(one.meanPercent)] : []),
  ]), [2, 3, 4, 5, ...names.map((_, i) => 6 + i), 6 + names.length]);
}

function outcomesTable({ outcomes }: Explanation, nowMs: number): string {
  return table(['SINCE', ...BENT_HEADS, 'CAPACITY', 'PREDICTED TOKENS/S', 'OBSERVED', 'MISS', 'WINDOWS', ''], outcomes.map((one) => [
    ago(nowMs - one.sinceMs), ...bentCells(one), capacityText(one.capacities), plusMinus(one.predictedTokensPerSecond, one.predictedTokensPerSecondSd), fixed(one.observedTokensPerSecond, 1),
    percent(one.missRate), String(one.windows), one.note,
  ]), [2, 3, 4, 5, 6, 7, 8]);
}

function plusMinus(value: number | null, sd: number | null): string {
  return value === null || sd === null ? fixed(value, 1) : `${value.toFixed(1)} ± ${sd.toFixed(1)}`;
}

/** What rounds to nothing is no loss and no gain. */
function signed(value: number): string {
  const rounded = Number(value.toFixed(2)) || 0;
  return `${rounded >= 0 ? '+' : ''}${rounded.toFixed(2)}%`;
}
