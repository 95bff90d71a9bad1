/** `moefleet doctor`: what is missing or slow, on this machine, at the coordinator, on a device, and what mends it. */
import type { Command } from 'commander';
import { mergeSettings } from '@moefleet/runtime';
import { addCommonOptions } from '../config';
import type { Context } from '../context';
import { probe, probeHere } from '../deploy/device-scripts';
import { type HostTarget, parseDestination } from '../deploy/host-target';
import { SshLink, type SshOptions } from '../deploy/ssh-link';
import { type Check, checksText } from '../doctor/check';
import { checkFleetFolder, checkHealth, checkRedis, checkStoreFolder, readLimits } from '../doctor/coordinator-machine';
import { checkDeviceMachine } from '../doctor/device-machine';
import { checkFleet, checkThisMachine } from '../doctor/operator-machine';
import { EXIT } from '../failure';
import { jsonText } from '../json-text';
import { operatorAction, type Run } from '../operator-command';
import { REPOSITORY } from '../repository';
import { addSshOptions, readSsh } from './deploy-hosts';

export function addDoctor(program: Command, context: Context): void {
  const doctor = addSshOptions(program.command('doctor').description('what is missing or slow, and the command that mends it'))
    .option('--coordinator', 'look at the machine a coordinator runs on, which is this one: Redis, the fleet\'s folder, its store, health')
    .option('--device <id>', 'look at one device as the coordinator knows it')
    .option('--ssh <host>', 'look at a device itself: user@host as for moefleet deploy ssh')
    .option('--here', 'likewise, where this machine is the device')
    .option('--redis-url <url>', 'with --coordinator: as moefleet coordinator run takes it (env: MOEFLEET_REDIS_URL)')
    .option('--tls-dir <folder>', 'with --coordinator: as moefleet coordinator run takes it (env: MOEFLEET_TLS_DIR)')
    .option('--artifact-dir <folder>', 'with --coordinator: as moefleet coordinator run takes it (env: MOEFLEET_ARTIFACT_DIR)')
    .addHelpText('after', `
Without a flag it looks at this machine and, through the coordinator, at the fleet. Changes nothing. Exit code 1 where
something is broken; slow things and remarks do not count.

Examples:
  moefleet doctor
  moefleet doctor --device phone-1
  moefleet doctor --ssh pi@board-1 --json
  moefleet doctor --coordinator --redis-url redis://10.0.0.2:6379 --tls-dir fleet
`);
  addCommonOptions(doctor, { operator: true }).action(operatorAction(context)((run) => diagnose(context, run)));
}

async function diagnose(context: Context, run: Run): Promise<void> {
  const { options, common } = run;
  const deviceId = options['device'] as string | undefined;
  const parts: (Check[] | Promise<Check[]>)[] = [];
  if (options['coordinator']) parts.push(checkCoordinatorHere(context, options));
  if (deviceId !== undefined) parts.push(checkFleet(run.operator, common.operator, deviceId, Date.now));
  if (options['ssh'] !== undefined) parts.push(lookOverSsh(context, parseDestination(String(options['ssh'])), readSsh(options)));
  if (options['here']) parts.push(lookHere());
  if (parts.length === 0) parts.push(checkThisMachine(REPOSITORY, common.ca, Date.now()), checkFleet(run.operator, common.operator, undefined, Date.now));
  const checks = (await Promise.all(parts)).flat();
  run.out(run.json ? jsonText({ checks }) : checksText(checks));
  if (checks.some(({ state }) => state === 'broken')) context.setExitCode(EXIT.failed);
}

async function checkCoordinatorHere(context: Context, options: Readonly<Record<string, unknown>>): Promise<Check[]> {
  const { inspectRedis, readConfig, SETTINGS } = await import('@moefleet/coordinator/main');
  const { redisUrl, tlsDir, artifactDir } = options;
  const config = readConfig(mergeSettings(SETTINGS, { redisUrl, tlsDir, artifactDir }, context.env));
  const redis = await inspectRedis(config.redis);
  return [...checkRedis(redis), ...checkFleetFolder(config, readLimits(), Date.now()), ...checkStoreFolder(config), ...await checkHealth(config)];
}

async function lookOverSsh(context: Context, target: HostTarget, ssh: SshOptions): Promise<Check[]> {
  const link = new SshLink(target, ssh, context.signal, () => {});
  try {
    await link.open();
    return checkDeviceMachine(target.id, await probe(link, { flash: true }), Date.now());
  } catch (error) {
    const { message, remedy } = error as { message: string; remedy?: string };
    return [{ state: 'broken', subject: target.id, check: 'ssh', found: message, remedy: remedy ?? '' }];
  } finally {
    await link.close();
  }
}

function lookHere(): Check[] {
  return checkDeviceMachine('this device', probeHere({ flash: true }), Date.now());
}
