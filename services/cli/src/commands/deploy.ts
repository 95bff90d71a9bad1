/** `moefleet deploy ssh`: agents on devices, one command for one or for many. */
import { setMaxListeners } from 'node:events';
import { existsSync, statSync } from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { type Command, Option } from 'commander';
import { parsePublicKey, parseSize, readLabels } from '@moefleet/runtime';
import { collect, durationFrom } from '../argument';
import { addCommonOptions } from '../config';
import type { Context } from '../context';
import { type BundleCargo, bundleCargo, type CargoFile, cargoFile, checkBundlePlace, findBundle } from '../deploy/cargo-file';
import { deployHost, type HostOutcome } from '../deploy/deploy-host';
import { DeployProgress } from '../deploy/deploy-progress';
import { SERVICE_USER } from '../deploy/device-scripts';
import { type HostReport, reportJson, reportText } from '../deploy/deploy-report';
import { fanOut } from '../deploy/fan-out';
import { type FleetView, fleetView, NO_FLEET } from '../deploy/fleet-view';
import { HostLogs } from '../deploy/host-log';
import type { HostTarget } from '../deploy/host-target';
import { SshLink } from '../deploy/ssh-link';
import type { Wanted } from '../deploy/wanted';
import { EXIT, UsageFailure } from '../failure';
import { jsonText } from '../json-text';
import { operatorAction, type Run } from '../operator-command';
import { ProgressLine } from '../progress-line';
import { REPOSITORY } from '../repository';
import { readTextFile } from '../text-file';
import { addHostOptions, readHosts, readSsh } from './deploy-hosts';

/** Where `npm run bundle` puts bundles. */
const BUNDLE_FOLDER = join(REPOSITORY, 'dist-bundle');
const DEFAULT_GATEWAY_PORT = 7400;

export function addDeploy(program: Command, context: Context): void {
  const deploy = addCommonOptions(program.command('deploy').description('put agents on devices'), { operator: true });
  const ssh = addHostOptions(deploy.command('ssh').description('check, copy, install, enrol and start the agent on hosts that ssh reaches'))
    .option('--model <file>', 'a model file here, which is copied; the NAME of one in the device\'s model folder; or a path on the device that begins with device:')
    .option('--coordinator <host:port>', 'agents\' gateway as the devices reach it; "none": without (default: the host of --operator, port 7400)')
    .option('--labels <k=v,...>', 'labels that selectors match')
    .option('--cache <size>', 'most memory for experts, such as 2GiB; auto: half of what is free', 'auto')
    .option('--memory-limit <limit>', 'of the service\'s control group: a percentage of the memory or a size', '80%')
    .option('--user <name>', 'service user that the agent runs as; made where it does not exist', SERVICE_USER)
    .option('--http <host:port>', 'address of the agent\'s HTTP API on the device', '127.0.0.1:8400')
    .option('--set <NAME=value>', 'any other setting of the agent by its environment variable (moefleet agent run --help); may be given several times', collect)
    .option('--bundle <place>', 'a bundle, or a folder of them (default: dist-bundle, where npm run bundle puts them)')
    .option('--bundle-key <file>', 'public key that bundles have to be signed with, here and from then on at the devices (npm run bundle:keygen; default: bundle-key.pub beside --ca, where it is)')
    .addOption(new Option('--patience <span>', 'how long a device may take from start to first token').argParser(durationFrom(1000, 24 * 3_600_000)).default(180_000, '3m'))
    .option('--dry-run', 'look at each host and print what would be done')
    .addHelpText('after', `
Uses the system's ssh with your keys, agent, jump hosts and ~/.ssh/config; it never asks for a password. As root, or with
sudo that takes no password, it makes a service user and a hardened systemd service; otherwise, or without systemd, a
supervised process. What is right already is left alone, a copy that was cut off goes on where it was: run it again
after a failure, or to change a setting. A host's id in the fleet is its name as given here.

Examples:
  moefleet deploy ssh pi@board-1 --model model.gguf --coordinator 10.0.0.1:7400
  moefleet deploy ssh root@a root@b root@c --model model.gguf --labels site=north --cache 2GiB --dry-run
  moefleet deploy ssh --inventory hosts.ini --limit jetson --model model.gguf --concurrency 16
  moefleet deploy ssh pi@board-1 --model model.gguf --set MOEFLEET_LANES=2 --set OTEL_EXPORTER_OTLP_ENDPOINT=http://10.0.0.1:4318
`);
  addCommonOptions(ssh, { operator: true }).action(operatorAction(context)((run) => deploySsh(context, run)));
}

async function deploySsh(context: Context, run: Run): Promise<void> {
  const { options, common } = run;
  const targets = readHosts(run.words, options);
  const ssh = readSsh(options);
  const bundlePlace = String(options['bundle'] ?? BUNDLE_FOLDER);
  checkBundlePlace(bundlePlace);
  const bundleKey = readBundleKey(options['bundleKey'] as string | undefined, common.ca);
  const gateway = gatewayOf(options['coordinator'] as string | undefined, common.operator);
  const plans = targets.map((target) => wantedOf(target, options, gateway, bundleKey));
  const models = new Map<string, CargoFile>();
  const preparing = new ProgressLine(context.stderr);
  for (const { modelFile } of plans) {
    if (modelFile === null || models.has(modelFile)) continue;
    preparing.update(0, `reading ${modelFile}`);
    models.set(modelFile, await cargoFile(modelFile));
  }
  preparing.end();
  const fleet: FleetView = gateway === 'none' ? NO_FLEET : await fleetView(run.operator, common.ca !== '', context.signal);
  const bundles = new Map<string, Promise<BundleCargo | null>>();
  const bundleFor = (arch: 'x64' | 'arm64') => {
    const found = findBundle(bundlePlace, arch);
    if (!found) return Promise.resolve(null);
    if (!bundles.has(arch)) bundles.set(arch, bundleCargo(found.path, bundleKey));
    return bundles.get(arch)!;
  };

  // Each host under way listens for an interruption, more than once.
  setMaxListeners(0, context.signal);
  const logs = new HostLogs(options['logDir'] as string | undefined, Date.now());
  const ids = targets.map(({ id }) => id);
  const progress = new DeployProgress(context.stderr, ids);
  const partials = ids.map((): Partial<HostOutcome> => ({}));
  const dryRun = Boolean(options['dryRun']);
  const results = await fanOut(ids, Number(options['concurrency']), async (id, index) => {
    const link = new SshLink(targets[index]!, ssh, context.signal, (line) => logs.write(id, line));
    const { wanted, modelFile } = plans[index]!;
    try {
      return await deployHost({
        wanted, link, bundleFor, fleet, dryRun, model: modelFile === null ? null : models.get(modelFile)!,
        patienceMs: Number(options['patience']), nowMs: Date.now,
        onPhase: (phase, fraction) => {
          if (fraction === null) logs.write(id, `phase: ${phase}`);
          progress.update(id, phase, fraction);
        },
      }, partials[index]!);
    } catch (error) {
      logs.write(id, `failed: ${(error as Error).message}`);
      progress.update(id, 'failed');
      throw error;
    } finally {
      await link.close();
    }
  });
  progress.end();
  const reports: HostReport[] = targets.map((target, i) => ({ target, result: results[i]!, partial: partials[i]!, logFile: logs.pathOf(target.id) }));
  run.out(run.json ? jsonText(reportJson(reports, dryRun, logs.folder)) : reportText(reports, dryRun, logs.folder));
  if (results.some(({ failure }) => failure)) context.setExitCode(context.signal.aborted ? EXIT.interrupted : EXIT.failed);
}

/** A host's own settings, from the inventory, win over the command's. */
function wantedOf(target: HostTarget, options: Readonly<Record<string, unknown>>, coordinator: string, bundleKey: string | null): { wanted: Wanted; modelFile: string | null } {
  const labels = target.labels ?? (options['labels'] as string | undefined) ?? '';
  readLabels('--labels', labels);
  const cache = target.cache ?? String(options['cache']);
  const model = target.model ?? (options['model'] as string | undefined);
  if (!model) throw new UsageFailure(`${target.id}: no model; give one with --model FILE (or moefleet_model in the inventory)`);
  const { place, file } = readModel(model);
  const http = String(options['http']);
  if (!/^(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+):[1-9]\d{0,4}$/.test(http)) throw new UsageFailure(`--http: "${http}": expected host:port, such as 127.0.0.1:8400`);
  const user = String(options['user']);
  if (!/^[a-z_][a-z0-9_-]{0,30}$/.test(user)) throw new UsageFailure(`--user: "${user}": expected a user name of lower-case letters, digits, "_" and "-"`);
  const memoryLimit = String(options['memoryLimit']);
  return {
    modelFile: file,
    wanted: {
      id: target.id, coordinator, labels, model: place, user,
      cacheBytes: cache === 'auto' ? null : readSizeOf('--cache', cache),
      memoryLimit: /^([1-9]\d?|100)%$/.test(memoryLimit) ? memoryLimit : String(readSizeOf('--memory-limit', memoryLimit)),
      http, bundleKey,
      settings: readSettings((options['set'] as string[] | undefined) ?? []),
    },
  };
}

/** null: the fleet has none, and bundles may be unsigned. */
function readBundleKey(given: string | undefined, caFile: string): string | null {
  const usual = join(dirname(caFile), 'bundle-key.pub');
  if (given === undefined && (caFile === '' || !existsSync(usual))) return null;
  const text = readTextFile('--bundle-key', given ?? usual);
  try {
    parsePublicKey(text);
  } catch (cause) {
    throw new UsageFailure(`--bundle-key: ${given ?? usual}: ${(cause as Error).message}`, { cause });
  }
  return text;
}

function readModel(model: string): { place: Wanted['model']; file: string | null } {
  if (model.startsWith('device:')) {
    const path = model.slice('device:'.length);
    if (!/^\/[^"\\$`\n%]+$/.test(path)) throw new UsageFailure(`--model: "${model}": expected device:/path/of/a/model.gguf`);
    return { place: { path }, file: null };
  }
  const file = existsSync(model) && statSync(model).isFile();
  const name = basename(model);
  if (!file && name !== model) throw new UsageFailure(`--model: there is no file "${model}" here`);
  if (!/^[A-Za-z0-9][A-Za-z0-9._+-]{0,200}$/.test(name)) throw new UsageFailure(`--model: "${name}": expected a file name of letters, digits, ".", "_", "+" and "-"`);
  return { place: { name }, file: file ? model : null };
}

function readSizeOf(name: string, text: string): number {
  try {
    const bytes = parseSize(text);
    if (bytes > 0) return bytes;
  } catch {
    // Told below, with the flag's name.
  }
  throw new UsageFailure(`${name}: "${text}": expected ${name === '--cache' ? 'auto or ' : 'a percentage or '}a size such as 512MiB or 2GiB`);
}

function readSettings(pairs: readonly string[]): Record<string, string> {
  return Object.fromEntries(pairs.map((pair) => {
    const match = /^((?:MOEFLEET|OTEL)_[A-Z0-9_]+)=(.*)$/s.exec(pair);
    if (!match) throw new UsageFailure(`--set: "${pair}": expected NAME=value with a setting of the agent, such as MOEFLEET_LANES=2`);
    if (match[1] === 'MOEFLEET_ENROL_TOKEN') throw new UsageFailure('--set: each device gets a token of its own; leave MOEFLEET_ENROL_TOKEN out');
    return [match[1]!, match[2]!];
  }));
}

/** What devices dial. Theirs is another machine, so loopback would be themselves. */
function gatewayOf(given: string | undefined, operator: string): string {
  if (given === 'none') return given;
  const address = given ?? `${operator.slice(0, operator.lastIndexOf(':'))}:${DEFAULT_GATEWAY_PORT}`;
  if (!/^(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+):\d{1,5}$/.test(address)) throw new UsageFailure(`--coordinator: "${address}": expected host:port as the devices reach it, or none`);
  if (given === undefined && /^(127\.|localhost:|\[::1\])/.test(address)) {
    throw new UsageFailure('--coordinator: give the address at which the devices reach the coordinator, such as 10.0.0.1:7400; it runs with --tls-dir and --gateway 0.0.0.0:7400 (see moefleet fleet init --help)');
  }
  return address;
}
