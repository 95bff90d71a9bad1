/** `moefleet fleet status`, `moefleet coordinators` and `moefleet devices history`: the fleet as a whole, and a device over time. */
import type { Command } from 'commander';
import type { Coordinator, FleetTotals, GetDeviceHistoryResponse, GetFleetStatusResponse, NamedTotals } from '@moefleet/proto';
import { formatSize } from '@moefleet/runtime';
import { addCommonOptions } from '../config';
import type { Context } from '../context';
import { jsonText } from '../json-text';
import { commandGroup, operatorAction } from '../operator-command';
import { fixed, NONE, pairs, percent, table } from '../table';
import { ago } from './devices';

export function addFleetStatus(program: Command, context: Context): void {
  const action = operatorAction(context);
  const fleet = commandGroup(program, 'fleet', 'the fleet as a whole');
  const status = fleet.command('status')
    .description('devices online, what they have counted, coordinators alive')
    .addHelpText('after', `
Every figure of a device is counted once, however often it was sent. Totals stay when devices go. Tokens/s and miss rate
are of the last full minute.

Examples:
  moefleet fleet status
  moefleet fleet status --json
`);
  addCommonOptions(status, { operator: true }).action(action(async ({ operator, json, out }) => {
    const answer = await operator.fleetStatus();
    out(json ? jsonText({ ...answer, missRate: answer.missRate ?? null }) : statusText(answer, Date.now()));
  }));

  const accept = fleet.command('accept-restore')
    .description('after Redis was emptied or restored: bring the devices that are held in line with what it holds now')
    .option('--device <id>', 'that device alone')
    .option('--why <text>', 'for the audit log')
    .addHelpText('after', `
A device that reports a newer spec than Redis holds keeps it and is shown as held, because what its spec was made of is
lost. First set again what is missing (moefleet lambda set ..., cache set ...), then accept: every held device gets the
spec that follows from what is set then, under a generation above its own.

Examples:
  moefleet fleet status
  moefleet fleet accept-restore --why 'pins set again from the runbook'
  moefleet fleet accept-restore --device phone-1 --json
`);
  addCommonOptions(accept, { operator: true }).action(action(async ({ operator, json, out, options }) => {
    const deviceIds = await operator.acceptRestore(String(options['device'] ?? ''), String(options['why'] ?? ''));
    if (json) out(jsonText({ deviceIds }));
    else out(deviceIds.length === 0 ? 'no device was held\n' : `${deviceIds.length} devices get what the registry holds: ${deviceIds.slice(0, 20).join(', ')}${deviceIds.length > 20 ? ', ...' : ''}; follow with: moefleet devices\n`);
  }));

  const coordinators = program.command('coordinators')
    .description('the coordinators that are alive')
    .addHelpText('after', '\nExamples:\n  moefleet coordinators\n  moefleet coordinators --json\n');
  addCommonOptions(coordinators, { operator: true }).action(action(async ({ operator, json, out }) => {
    const found = await operator.listCoordinators();
    out(json ? jsonText({ coordinators: found }) : coordinatorsTable(found, Date.now()));
  }));

  const history = commandGroup(program, 'devices').command('history')
    .description('what a device has counted over the last ten minutes, in steps of ten seconds')
    .argument('<id>', 'device id')
    .addHelpText('after', '\nExamples:\n  moefleet devices history phone-1\n  moefleet devices history phone-1 --json\n');
  addCommonOptions(history, { operator: true }).action(action(async ({ operator, json, out, args }) => {
    const answer = await operator.deviceHistory(args[0]!);
    out(json ? jsonText(answer) : historyText(args[0]!, answer));
  }));
}

function statusText(answer: GetFleetStatusResponse, nowMs: number): string {
  const { frames } = answer;
  const shed = frames && frames.shed > 0n ? ` (their figures come with the next frame)` : '';
  return [
    pairs([
      ['devices', `${answer.devicesOnline} online, ${answer.devicesOffline} offline, ${answer.devicesDrifting} drifting`],
      ...(answer.devicesHeld > 0 ? [['held', `${answer.devicesHeld} devices keep a spec that Redis has lost; see: moefleet fleet accept-restore --help`] as [string, string]] : []),
      ['last minute', `${fixed(answer.tokensPerSecond, 1)} tokens/s, miss rate ${percent(answer.missRate)}`],
      ['frames', `${frames?.counted ?? 0} counted, ${frames?.duplicate ?? 0} duplicate, ${frames?.refused ?? 0} refused, ${frames?.shed ?? 0} shed${shed}; ${frames?.boots ?? 0} boots`],
      ['redis', `up, ${answer.redisUrl}`],
    ]),
    coordinatorsTable(answer.coordinators, nowMs),
    table(['TOTALS', 'TOKENS', 'PREFILL', 'HITS', 'MISSES', 'MISS', 'SWAPS', 'FLASH', 'REQUESTS', 'FAILED'], [
      ...(answer.totals ? [totalsRow('all', answer.totals)] : []),
      ...namedRows('class', answer.byClass),
      ...namedRows('model', answer.byModel),
    ], [1, 2, 3, 4, 5, 6, 7, 8, 9]),
  ].join('\n');
}

function namedRows(kind: string, named: readonly NamedTotals[]): string[][] {
  return named.flatMap(({ name, totals }) => (totals ? [totalsRow(`${kind} ${name.slice(0, 20)}`, totals)] : []));
}

function totalsRow(name: string, totals: FleetTotals): string[] {
  const slots = Number(totals.hits + totals.misses);
  return [
    name, String(totals.decodeTokens), String(totals.prefillTokens), String(totals.hits), String(totals.misses),
    percent(slots ? Number(totals.misses) / slots : null), String(totals.swaps), formatSize(Number(totals.flashBytes)), String(totals.requests), String(totals.requestsFailed),
  ];
}

function coordinatorsTable(coordinators: readonly Coordinator[], nowMs: number): string {
  return table(['COORDINATOR', 'VERSION', 'AGENTS AT', 'OPERATORS AT', 'STREAMS', 'SHED', 'SINCE', 'STATE'], coordinators.map((one) => [
    one.coordinatorId, one.version || NONE, one.gatewayAddress || NONE, one.operatorAddress || NONE, String(one.streams), String(one.framesShed),
    ago(nowMs - Number(one.sinceMs)), one.stopping ? 'stopping' : 'up',
  ]), [4, 5]);
}

function historyText(id: string, { stepMs, points }: GetDeviceHistoryResponse): string {
  if (points.length === 0) return `${id} has counted nothing in the last ten minutes; see: moefleet devices show ${id}\n`;
  const seconds = stepMs / 1000;
  return table(['TIME (UTC)', 'TOKENS/S', 'MISS', 'SWAPPED', 'FLASH/S'], points.map((point) => {
    const slots = point.hits + point.misses;
    return [
      new Date(Number(point.timeMs)).toISOString().slice(11, 19), fixed(point.decodeTokens / seconds, 1),
      percent(slots > 0 ? point.misses / slots : null), percent(slots > 0 ? point.swaps / slots : null), formatSize(Math.round(point.flashBytes / seconds)),
    ];
  }), [1, 2, 3, 4]);
}
