/** `moefleet support-bundle`: what somebody who helps needs to know, without what nobody else may. */
import { gzipSync } from 'node:zlib';
import type { Command } from 'commander';
import { TAR_END, tarHeader, tarPadding, VERSION } from '@moefleet/runtime';
import { collect } from '../argument';
import { addCommonOptions } from '../config';
import type { Context } from '../context';
import { installStep, probe, SERVICE_USER } from '../deploy/device-scripts';
import { DEPLOY_LOGS } from '../deploy/host-log';
import { parseDestination } from '../deploy/host-target';
import { SshLink } from '../deploy/ssh-link';
import { deviceJson } from '../device-view';
import { checkFleet, checkThisMachine } from '../doctor/operator-machine';
import { jsonText } from '../json-text';
import { operatorAction, type Run } from '../operator-command';
import { REPOSITORY } from '../repository';
import { environment, latestDeployLogs, secretsOf, SupportParts, versions } from '../support/support-parts';
import { refuseExisting, writeNewFile } from '../text-file';
import { addSshOptions, readSsh } from './deploy-hosts';

const AUDIT_ENTRIES = 200;

export function addSupportBundle(program: Command, context: Context): void {
  const command = addSshOptions(program.command('support-bundle').description('versions, settings, fleet status and recent logs in one file, with secrets taken out'))
    .option('--out <file>', 'a .tar.gz that does not exist yet (default: moefleet-support-TIME.tar.gz)')
    .option('--log <file>', 'the end of a log file too, of a coordinator for instance; may be given several times', collect)
    .option('--ssh <host>', 'a device\'s own facts and log too: user@host; may be given several times', collect)
    .addHelpText('after', `
Takes what it can get; what it cannot is named with the reason. Tokens, keys, certificates and passwords are replaced by
a word wherever they stand. It holds names of devices and operators, addresses and what devices counted, and no texts
of users: look into it before you pass it on.

Examples:
  moefleet support-bundle
  moefleet support-bundle --ssh pi@board-1 --log /var/log/moefleet-coordinator.log --out case.tar.gz
`);
  addCommonOptions(command, { operator: true }).action(operatorAction(context)((run) => gather(context, run)));
}

async function gather(context: Context, run: Run): Promise<void> {
  const { operator, options, common } = run;
  const now = new Date();
  const name = `moefleet-support-${now.toISOString().slice(0, 19).replace(/[:T]/g, '-')}`;
  const out = String(options['out'] ?? `${name}.tar.gz`);
  refuseExisting('--out', out);
  const parts = new SupportParts([...secretsOf(context.env), ...(common.token === null ? [] : [common.token])]);
  parts.json('versions.json', versions());
  parts.json('environment.json', environment(context.env));
  await parts.attempt('doctor.json', async () => ({ checks: [...checkThisMachine(REPOSITORY, common.ca, Date.now()), ...await checkFleet(operator, common.operator, undefined, Date.now)] }));
  await parts.attempt('fleet/status.json', () => operator.fleetStatus());
  await parts.attempt('fleet/coordinators.json', async () => ({ coordinators: await operator.listCoordinators() }));
  await parts.attempt('fleet/devices.json', async () => ({ devices: (await operator.listDevices()).map(deviceJson) }));
  await parts.attempt('fleet/rollouts.json', async () => ({ rollouts: await operator.listRollouts() }));
  await parts.attempt('fleet/audit.json', () => latestAudit(operator));
  for (const file of latestDeployLogs(DEPLOY_LOGS)) await parts.log('deploy-logs', file);
  for (const file of (options['log'] as string[] | undefined) ?? []) await parts.log('logs', file);
  for (const host of (options['ssh'] as string[] | undefined) ?? []) await fromDevice(context, parts, host, options);

  writeNewFile('--out', out, [archive(name, parts.files)], 0o600);
  const files = [...parts.files.keys()].sort();
  if (run.json) run.out(jsonText({ file: out, version: VERSION, files }));
  else run.out(`${out}\n${files.map((file) => `  ${file}\n`).join('')}`);
}

async function latestAudit(operator: Run['operator']): Promise<unknown> {
  const entries: unknown[] = [];
  await operator.readAudit({ sinceMs: 0n, deviceId: '', who: '', limit: AUDIT_ENTRIES, follow: false }, (entry) => entries.push(entry));
  return { entries };
}

async function fromDevice(context: Context, parts: SupportParts, host: string, options: Readonly<Record<string, unknown>>): Promise<void> {
  const target = parseDestination(host);
  const link = new SshLink(target, readSsh(options), context.signal, () => {});
  const folder = `devices/${target.id}`;
  try {
    await parts.attempt(`${folder}/facts.json`, async () => {
      await link.open();
      const facts = await probe(link, { flash: false });
      const by = facts.systemd === null ? 'launcher' : 'systemd';
      await parts.attempt(`${folder}/agent.log`, () => installStep(link, facts, SERVICE_USER, 'log', [by, '2000']));
      await parts.attempt(`${folder}/agent.env`, () => link.script('settings', 'cat "$1"', [`${facts.config}/agent.env`]));
      return facts;
    });
  } finally {
    await link.close();
  }
}

function archive(name: string, files: ReadonlyMap<string, string>): Buffer {
  const blocks = [...files].sort(([a], [b]) => (a < b ? -1 : 1)).flatMap(([path, text]) => {
    const data = Buffer.from(text);
    return [tarHeader({ path: `${name}/${path}`, bytes: data.length, executable: false }), data, tarPadding(data.length)];
  });
  return gzipSync(Buffer.concat([...blocks, TAR_END]));
}
