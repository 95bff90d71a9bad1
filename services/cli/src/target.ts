/** Which devices a command is for: exactly one of `--all`, `--device ID`, `--selector LABELS`. */
import type { Command } from 'commander';
import type { LabelSelector, Target } from '@moefleet/proto';
import { labelsOfSelector, parseSelector, printSelector, SelectorError } from '@moefleet/runtime';
import { UsageFailure } from './failure';

/** What `--selector` takes, wherever it is an option. */
export const SELECTOR_HELP = 'devices by their labels, such as class=phone or "class=jetson-orin,region in (eu,us),!canary,tier!=dev,gpu"';

export interface TargetOptions { all?: boolean; device?: string; selector?: string; }

export function addTargetOptions(command: Command): Command {
  return command
    .option('--all', 'every device of the fleet, and those that join later')
    .option('--device <id>', 'one device')
    .option('--selector <labels>', SELECTOR_HELP);
}

/** Throws UsageFailure where none or more than one is given. */
export function readTarget(options: TargetOptions): Target {
  const given = [options.all && '--all', options.device !== undefined && '--device', options.selector !== undefined && '--selector'].filter(Boolean);
  if (given.length === 0) throw new UsageFailure('no target given; name the devices with --all, --device ID or --selector class=phone');
  if (given.length > 1) throw new UsageFailure(`${given.join(' and ')} exclude each other; give one of them`);
  if (options.all) return { kind: { $case: 'all', value: true } };
  if (options.device !== undefined) {
    if (options.device.trim() === '') throw new UsageFailure('--device: "" is no device id; list them with: moefleet devices');
    return { kind: { $case: 'deviceId', value: options.device } };
  }
  return { kind: { $case: 'selector', value: readSelector(options.selector!) } };
}

/** Throws UsageFailure that says where in the text it is wrong. */
export function readSelector(text: string): LabelSelector {
  try {
    const selector = parseSelector(text);
    // A coordinator of an earlier release knows exact labels only.
    const matchLabels = labelsOfSelector(selector);
    return matchLabels ? { matchLabels, expression: '' } : { matchLabels: {}, expression: printSelector(selector) };
  } catch (error) {
    if (!(error instanceof SelectorError)) throw error;
    throw new UsageFailure(`--selector: "${text.slice(0, 200)}" is no selector: ${error.message}; write it as class=phone,region in (eu,us),!canary`, { cause: error });
  }
}
