/** An explanation for a reader who has not seen one before: the answer first, then what it rests on, then the figures. */
import { formatSize } from '@moefleet/runtime';
import { capacityText, fixed, NONE, pairs, percent, table } from '../table';
import { ago } from '../commands/devices';
import type { Explanation, SettingRow } from './explanation';

export function explanationText(one: Explanation, nowMs: number): string {
  const head = `${one.device}${one.model ? `, model ${one.model}` : ''}\n`;
  if (one.reason === null) return `${head}\nno learner has looked at it yet; start one with \`moefleet learner run\`, or queue a run with \`moefleet learner now\`\n`;
  const parts = [
    `${head}\n${one.proposed ? 'CHOSEN' : 'NOTHING IS PROPOSED'}: ${one.reason}\n`,
    section('WHAT THE CHOICE RESTS ON', pairs(inputRows(one, nowMs))),
    one.chosen ? section('THE SETTINGS COMPARED (losses in perplexity; "at most" is the one-sided 95% bound, which has to stay within the budget)', settingsTable(one)) : '',
    one.measured.length > 0 ? section(`WHAT WAS MEASURED AT CAPACITY ${capacityText(one.chosen!.capacities)} (± one standard error)`, measuredTable(one)) : '',
    one.outcomes.length > 0 ? section('PREDICTED AND OBSERVED, oldest first', outcomesTable(one, nowMs)) : '',
  ];
  return parts.filter(Boolean).join('\n');
}

function section(title: string, text: string): string {
  return `${title}\n${text}`;
}

function inputRows({ budgets, memory, speed, missRatio, quarantine }: Explanation, nowMs: number): [string, string][] {
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
  if (speed) rows.push(['drift', speed.drift ?? 'none seen']);
  if (missRatio !== null) rows.push(['its own misses', Math.abs(missRatio - 1) < 0.005 ? 'as many as the texts have' : `${missRatio.toFixed(2)} times those of the texts at the same setting`]);
  rows.push(['telemetry', quarantine ? `QUARANTINED ${ago(nowMs - quarantine.sinceMs)}, ${quarantine.windows} windows set aside: ${quarantine.reason}` : 'believed']);
  return rows;
}

function speedText(speed: NonNullable<Explanation['speed']>): string {
  const own = `${speed.windows} windows of its own`;
  const shared = speed.priorDevices > 0 ? ` and what ${speed.priorDevices} devices${speed.deviceClass ? ` of class ${speed.deviceClass}` : ''} share` : '';
  return `ms per token = ${speed.computeMs.toFixed(2)} ± ${speed.computeSd.toFixed(2)} compute + ${speed.readingMsPerMib.toFixed(2)} ± ${speed.readingSd.toFixed(2)} per MiB missed` +
    `${speed.missMibPerToken === null ? '' : ` (of late ${speed.missMibPerToken.toFixed(2)} MiB per token)`}, from ${own}${shared}`;
}

function settingsTable({ chosen, baseline, beyond, boundBy }: Explanation): string {
  const row = (name: string, one: SettingRow | null) => (one ? [[
    name, String(one.lambda), one.lambda === 0 ? NONE : String(one.topJ), capacityText(one.capacities), percent(one.missRate),
    one.tokensPerSecond === null ? NONE : `${one.tokensPerSecond.toFixed(1)} ± ${one.tokensPerSecondSd!.toFixed(1)}`,
    signed(one.loss.meanPercent), signed(one.loss.atMostPercent), one.worst ? `${signed(one.worst.atMostPercent)} (${one.worst.domain})` : NONE, one.measured ? 'yes' : 'between points',
  ]] : []);
  return table(['', 'λ', 'TOP J', 'CAPACITY', 'MISS', 'TOKENS/S', 'LOSS', 'AT MOST', 'WORST TEXT AT MOST', 'MEASURED'], [
    ...row('chosen', chosen), ...row('model\'s own routing', baseline), ...row(`beyond the ${boundBy ?? 'bound'}`, beyond),
  ], [1, 2, 3, 4, 5, 6, 7]);
}

function measuredTable({ measured, chosen, domains }: Explanation): string {
  const names = domains.map(({ domain }) => domain);
  return table(['', 'λ', 'TOP J', 'MISS', 'TOKENS/S', ...names.map((name) => name.toUpperCase()), ...(names.length > 1 ? ['MEAN'] : [])], measured.map((one) => [
    chosen && one.lambda === chosen.lambda && (one.lambda === 0 || one.topJ === chosen.topJ) ? '>' : '', String(one.lambda), one.lambda === 0 ? NONE : String(one.topJ),
    percent(one.missRate), fixed(one.tokensPerSecond, 1), ...one.domains.map(({ lossPercent, stderrPercent }) => (one.lambda === 0 ? '0' : `${signed(lossPercent)} ± ${stderrPercent.toFixed(2)}`)),
    ...(names.length > 1 ? [signed(one.meanPercent)] : []),
  ]), [1, 2, 3, 4, ...names.map((_, i) => 5 + i), 5 + names.length]);
}

function outcomesTable({ outcomes }: Explanation, nowMs: number): string {
  return table(['SINCE', 'λ', 'TOP J', 'CAPACITY', 'PREDICTED TOKENS/S', 'OBSERVED', 'MISS', 'WINDOWS', ''], outcomes.map((one) => [
    ago(nowMs - one.sinceMs), String(one.lambda), String(one.topJ), capacityText(one.capacities), fixed(one.predictedTokensPerSecond, 1), fixed(one.observedTokensPerSecond, 1),
    percent(one.missRate), String(one.windows), one.note,
  ]), [1, 2, 3, 4, 5, 6, 7]);
}

function signed(value: number): string {
  return `${value >= 0 ? '+' : ''}${value.toFixed(2)}%`;
}
