/** `moefleet devices watch`: the fleet as it changes, as a live table or as JSON, one object per line. */
import type { Command } from 'commander';
import { status } from '@grpc/grpc-js';
import { type Device, type LabelSelector, SpecState } from '@moefleet/proto';
import { backoffMs } from '@moefleet/runtime';
import { setTimeout as sleep } from 'node:timers/promises';
import { addCommonOptions } from '../config';
import type { Context } from '../context';
import { deviceJson } from '../device-view';
import { type Failure, statusOf } from '../failure';
import { enumName, toJson } from '../json-text';
import { LiveText, type Terminal } from '../live-text';
import { commandGroup, operatorAction, type Run } from '../operator-command';
import { capacityText, labelsText, NONE, table } from '../table';
import { readSelector, SELECTOR_HELP } from '../target';
import { type DeviceNews, type WatchedDevice, WatchedDevices } from '../watched-devices';
import { driftText, lambdaText, onlineText } from './devices';

/** Between two attempts to reach a coordinator that was there. */
const RECONNECT = { baseMs: 250, maxMs: 2000, random: Math.random };
/** How a stream ends whose coordinator is restarted, cut off, or without Redis. */
const PASSES: readonly number[] = [status.UNAVAILABLE, status.CANCELLED, status.INTERNAL, status.UNKNOWN, status.RESOURCE_EXHAUSTED];

export function addDevicesWatch(program: Command, context: Context): void {
  const watch = commandGroup(program, 'devices').command('watch')
    .description('devices as they are now, then each change: online, desired, reported, drift, labels, model')
    .option('--selector <labels>', SELECTOR_HELP)
    .addHelpText('after', `
On a terminal a table that keeps itself up to date; else, or with --json, one JSON object per line: "present" for each
device that is there, "ready", then "changed" (with what), "joined" and "gone" as it happens. Telemetry is no change; see
it with: moefleet devices. Goes on until Ctrl-C; a coordinator that is restarted is reached again, and what has changed
meanwhile is told then.

Examples:
  moefleet devices watch
  moefleet devices watch --selector class=phone
  moefleet devices watch --json | jq -c 'select(.changed // [] | index("online")) | {id: .device.id, online: .device.online}'
`);
  addCommonOptions(watch, { operator: true }).action(operatorAction(context)((run) => {
    const selector = run.options['selector'];
    return watchDevices(context, run, selector === undefined ? undefined : readSelector(String(selector)));
  }));
}

async function watchDevices(context: Context, run: Run, selector: LabelSelector | undefined): Promise<void> {
  const watched = new WatchedDevices();
  const terminal = context.stdout as Terminal;
  let trouble = '';
  const live = !run.json && terminal.isTTY ? new LiveText(terminal, (most) => liveLines([...watched.devices.values()], trouble, most)) : null;
  const tell = (news: DeviceNews) => {
    if (!live) run.out(`${JSON.stringify(newsJson(news, Date.now()))}\n`);
  };
  const become = (text: string) => {
    if (text !== trouble && !live) run.note(text ? `${text}; trying again\n` : 'watching again\n');
    trouble = text;
    live?.refresh();
  };
  try {
    for (let failures = 0, reached = false; ; failures += 1) {
      watched.begin();
      try {
        await run.operator.watchDevices({ selector }, (message) => {
          [failures, reached] = [0, true];
          if (trouble) become('');
          for (const news of watched.take(message)) tell(news);
          live?.refresh();
        });
        become('the coordinator has ended the stream');
      } catch (error) {
        if (!reached || context.signal.aborted || !passes(error)) throw error;
        become((error as Failure).message);
      }
      await sleep(backoffMs(failures, RECONNECT), undefined, { signal: context.signal });
    }
  } finally {
    live?.end();
  }
}

function passes(error: unknown): boolean {
  const code = statusOf(error);
  return code !== undefined && PASSES.includes(code);
}

function newsJson(news: DeviceNews, timeMs: number) {
  return toJson({ timeMs, ...news, ...('device' in news ? { device: deviceJson(news.device) } : {}) });
}

/** Where not all devices fit, those that have changed last. */
function liveLines(all: readonly WatchedDevice[], trouble: string, most: number): string[] {
  const online = all.filter(({ device }) => device.online).length;
  const drifting = all.filter(({ device }) => device.drift).length;
  const head = `${all.length} devices, ${online} online, ${drifting} not running what they should${trouble ? `; ${trouble}; trying again` : ''}`;
  const room = Math.max(1, most - 4);
  const shown = all.length <= room ? [...all] : [...all].sort((a, b) => b.sinceMs - a.sinceMs).slice(0, room);
  const rows = shown.sort((a, b) => (a.device.id < b.device.id ? -1 : 1)).map(({ device, sinceMs }) => [...cells(device), new Date(sinceMs).toTimeString().slice(0, 8)]);
  const hidden = all.length - shown.length;
  return [
    head, '', ...table(['ID', 'ONLINE', 'λ', 'CAPACITY', 'DESIRED', 'REPORTED', 'DRIFT', 'LABELS', 'SINCE'], rows, [3, 4]).trimEnd().split('\n'),
    ...(hidden > 0 ? [`${hidden} more have not changed for longer; see fewer with --selector`] : []),
  ];
}

function cells(device: Device): string[] {
  const { reported } = device;
  return [
    device.id, onlineText(device), lambdaText(device), capacityText(reported?.effective?.capacities ?? []), device.desiredGeneration ? String(device.desiredGeneration) : NONE,
    reported && reported.state !== SpecState.SPEC_STATE_UNSPECIFIED ? `${enumName(SpecState, 'SPEC_STATE_', reported.state)} ${reported.generation}` : NONE,
    device.held ? 'held' : device.drift ? driftText(device) : 'no', labelsText(device.labels),
  ];
}
