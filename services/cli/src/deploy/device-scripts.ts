/** The scripts of deploy/device as they are run on devices: what a device is, and one step of an installation. */
import { spawnSync } from 'node:child_process';
import { deployFile } from './deploy-files';
import { type DeviceFacts, parseFacts } from './device-facts';
import type { SshLink } from './ssh-link';

/** Service user that agents run as unless another is asked for. */
export const SERVICE_USER = 'moefleet';

/** `model`: file name whose hash is asked for; `flash`: whether reads are measured. */
export interface ProbeOptions { user?: string; model?: string; flash: boolean; }

/** Throws DeployError. */
export async function probe(link: SshLink, options: ProbeOptions): Promise<DeviceFacts> {
  return parseFacts(await link.script('check', deployFile('device/probe.sh'), probeArguments(options)));
}

/** Where this machine is the device. Throws DeployError. */
export function probeHere(options: ProbeOptions): DeviceFacts {
  return parseFacts(spawnSync('sh', ['-s', '--', ...probeArguments(options)], { input: deployFile('device/probe.sh'), encoding: 'utf8' }).stdout);
}

function probeArguments({ user = SERVICE_USER, model = '', flash }: ProbeOptions): string[] {
  return [user, model, flash ? 'yes' : 'no'];
}

/** Resolves with what the step prints. `content`: without quotes; by way of standard input, so that it shows in no list of processes. Throws DeployError. */
export function installStep(link: SshLink, { prefix, config, state }: DeviceFacts, user: string, step: string, args: readonly string[] = [], content = ''): Promise<string> {
  return link.script(step, `content='${content}'\n${deployFile('device/install.sh')}`, [step, prefix, config, state, user, ...args]);
}
