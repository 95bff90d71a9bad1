/** `moefleet windows`: which devices record what their routers say, what of it is kept, and its end. */
import { type Command, Option } from 'commander';
import { formatSize } from '@moefleet/runtime';
import { integerFrom, sizeAbove } from '../argument';
import { addCommonOptions } from '../config';
import type { Context } from '../context';
import { UsageFailure } from '../failure';
import { jsonText } from '../json-text';
import { addOperatorGroup, type Run } from '../operator-command';
import { capacityText, table } from '../table';
import { changing } from './change';

const MIB = 1024 ** 2;

export function addWindows(program: Command, context: Context): void {
  addOperatorGroup(program, context, 'windows', 'sampled windows of router scores, for replays; off unless enabled', (windows, action) => {
    changing(context, action, windows.command('enable').alias('on')
      .description('have devices record windows of router scores and send them, within byte budgets')
      .argument('[device]', 'short for --device')
      .addOption(new Option('--tokens <n>', 'consecutive decode tokens in one window').argParser(integerFrom(1, 4096)).default(64))
      .addOption(new Option('--bytes-per-day <size>', 'most compressed bytes a device records in 24 hours').argParser(sizeAbove(1)).default(16 * MIB, '16MiB'))
      .addOption(new Option('--bytes-per-hour <size>', 'most in an hour').argParser(sizeAbove(1)).default(MIB, '1MiB')),
    '\nExamples:\n  moefleet windows enable phone-1\n  moefleet windows enable --selector class=phone --bytes-per-day 4MiB\n',
    (run) => {
      takeDevice(run);
      const { tokens, bytesPerDay, bytesPerHour } = run.options as { tokens: number; bytesPerDay: number; bytesPerHour: number };
      return { $case: 'setRouterSampling', value: { sampling: { windowTokens: tokens, bytesPerHour: BigInt(bytesPerHour), bytesPerDay: BigInt(bytesPerDay) } } };
    });
    changing(context, action, windows.command('disable').alias('off').description('have devices record none, and drop what they have not sent yet').argument('[device]', 'short for --device'),
      '\nExamples:\n  moefleet windows disable phone-1\n  moefleet windows disable --all\n', (run) => {
        takeDevice(run);
        return { $case: 'setRouterSampling', value: { sampling: undefined } };
      });

    const list = windows.command('list').description('the windows that the coordinators keep of a device, oldest first').argument('<device>', 'device id')
      .addHelpText('after', '\nExamples:\n  moefleet windows list phone-1\n  moefleet replay --device phone-1 --capacity 8:32:4 --lambda 0,0.1,0.2\n');
    addCommonOptions(list, { operator: true }).action(action(listWindows));

    const remove = windows.command('delete').description('delete the windows that are kept of a device; the audit log says who did').argument('<device>', 'device id')
      .option('--why <text>', 'reason, kept in the audit log', '')
      .addHelpText('after', '\nA device that is still enabled goes on sending new ones.\n\nExample:\n  moefleet windows disable phone-1 && moefleet windows delete phone-1 --why "user asked"\n');
    addCommonOptions(remove, { operator: true }).action(action(async ({ operator, json, args, options, out }) => {
      const { windows: count, bytes } = await operator.deleteWindows(args[0]!, String(options['why']));
      out(json ? jsonText({ deviceId: args[0], windows: count, bytes: Number(bytes) }) : `${args[0]}: ${count} windows deleted, ${formatSize(Number(bytes))}\n`);
    }));
  });
}

async function listWindows({ operator, json, args, out }: Run): Promise<void> {
  const { windows, mostWindows, mostBytes } = await operator.listWindows(args[0]!);
  const rows = windows.flatMap(({ window, bytes }) => (window ? [{
    windowId: window.windowId, timeMs: Number(window.timeMs), modelHash: window.modelHash, tokens: window.tokens, layers: window.layers, experts: window.experts, topK: window.topK,
    lambda: window.lambda, capacities: window.spec?.capacities ?? [], generation: Number(window.generation), bytes,
  }] : []));
  if (json) return out(jsonText({ deviceId: args[0], mostWindows, mostBytes: Number(mostBytes), windows: rows }));
  const total = rows.reduce((sum, { bytes }) => sum + bytes, 0);
  out(table(['TIME', 'MODEL', 'TOKENS', 'LAYERS', 'EXPERTS', 'λ', 'CAPACITY', 'BYTES'], rows.map((row) => [
    new Date(row.timeMs).toISOString(), row.modelHash.slice(0, 12), String(row.tokens), String(row.layers), `${row.topK} of ${row.experts}`, String(row.lambda),
    capacityText(row.capacities), String(row.bytes),
  ]), [2, 3, 4, 5, 6, 7]));
  out(`\n${rows.length} windows, ${formatSize(total)}; at most ${mostWindows} and ${formatSize(Number(mostBytes))} are kept, the latest\n`);
}

/** The argument names the device as `--device` does. */
function takeDevice({ args, options }: Run): void {
  if (args[0] === undefined) return;
  if (options['device'] !== undefined) throw new UsageFailure(`both ${args[0]} and --device ${String(options['device'])} are given; name one device`);
  options['device'] = args[0];
}
