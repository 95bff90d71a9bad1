/** Which devices a command is for: exactly one of `--all`, `--device ID`, `--selector k=v`. */
import type { Command } from 'commander';
import type { LabelSelector, Target } from '@moefleet/proto';
import { readLabels } from '@moefleet/runtime';
import { UsageFailure } from './failure';

export interface TargetOptions { all?: boolean; device?: string; selector?: string; }

export function addTargetOptions(command: Command): Command {
  return command
    .option('--all', 'every device of the fleet, and those that join later')
    .option('--device <id>', 'one device')
    .option('--selector <labels>', 'devices with all of these labels, such as class=phone,site=berlin');
}

/** Throws UsageFailure where none or more than one is given. */
export function readTarget(options: TargetOptions): Target {
  const given = [options.all && '--all', options.device !== undefined && '--device', options.selector !== undefined && '--selector'].filter(Boolean);
  if (given.length === 0) throw new UsageFailure('no target given; name the devices with --all, --device ID or --selector k=v');
  if (given.length > 1) throw new UsageFailure(`${given.join(' and ')} exclude each other; give one of them`);
  if (options.all) return { kind: { $case: 'all', value: true } };
  if (options.device !== undefined) {
    if (options.device.trim() === '') throw new UsageFailure('--device: "" is no device id; list them with: moefleet devices');
    return { kind: { $case: 'deviceId', value: options.device } };
  }
  return { kind: { $case: 'selector', value: readSelector(options.selector!) } };
}

/** Throws ConfigError for a malformed label, UsageFailure for none at all. */
export function readSelector(text: string): LabelSelector {
  const matchLabels = readLabels('--selector', text);
  if (Object.keys(matchLabels).length === 0) {
    throw new UsageFailure(`--selector: "${text}" holds no label; write it as class=phone, or use --all`);
  }
  return { matchLabels };
}
