/** `moefleet agent push` and `moefleet agent upgrade`: releases of the agent, and which of them devices run. */
import { createReadStream, existsSync, readFileSync } from 'node:fs';
import { basename } from 'node:path';
import { type Command, InvalidArgumentError } from 'commander';
import { BundleError, formatSize, parseVersion, readBundleManifest } from '@moefleet/runtime';
import { addCommonOptions } from '../config';
import type { Context } from '../context';
import { cargoFile } from '../deploy/cargo-file';
import { Failure, UsageFailure } from '../failure';
import { jsonText, toJson } from '../json-text';
import { operatorAction } from '../operator-command';
import { ProgressLine } from '../progress-line';
import { table } from '../table';
import { changing } from './change';

const DEADLINE_MS = 600_000;

export function addAgentReleases(agent: Command, context: Context): void {
  const action = operatorAction(context);
  addCommonOptions(agent.command('push')
    .description('bring a release of the agent to the coordinator, for devices to fetch')
    .argument('<bundle...>', 'bundles as `npm run bundle` makes them, each with its signature beside it (FILE.minisig)')
    .addHelpText('after', `
The coordinator keeps it in its --artifact-dir. Devices verify the signature against the key pinned on them; nothing is
upgraded by pushing: see \`moefleet agent upgrade\`.

Examples:
  moefleet agent push dist-bundle/moefleet-agent-0.2.0-linux-*.tar.zst
`), { operator: true }).action(action(async ({ operator, words, json, out }) => {
    const pushed = [];
    for (const file of words) {
      const artifact = await describeBundle(file);
      const bytes = Number(artifact.bytes);
      const line = new ProgressLine(context.stderr);
      pushed.push(await operator.putArtifact(artifact, createReadStream(file, { highWaterMark: 1 << 18 }) as AsyncIterable<Buffer>,
        (sent) => line.update(sent / bytes, `sending ${artifact.name}`, `${formatSize(sent)} of ${formatSize(bytes)}`)).finally(() => line.end()));
    }
    out(json ? jsonText({ artifacts: pushed.map((artifact) => toJson(artifact)) }) : pushed.map(({ name, bytes }) => `${name}  ${formatSize(Number(bytes))}\n`).join(''));
  }));

  addCommonOptions(agent.command('releases').description('releases that devices can fetch')
    .addHelpText('after', '\nExample:\n  moefleet agent releases --json\n'), { operator: true }).action(action(async ({ operator, json, out }) => {
    const artifacts = await operator.listArtifacts();
    out(json ? jsonText({ artifacts: artifacts.map((artifact) => toJson(artifact)) })
      : table(['NAME', 'SIZE', 'SHA-256', 'ADDED'], artifacts.map(({ name, bytes, sha256, addedMs }) => [name, formatSize(Number(bytes)), sha256.slice(0, 12), new Date(Number(addedMs)).toISOString()])));
  }));

  changing(context, action, agent.command('upgrade')
    .description('have devices run this release of the agent: each fetches it, puts it on trial, and returns to the one before where it is not healthy')
    .argument('<version>', 'such as 0.2.0; pushed before with `moefleet agent push`', versionText)
    .option('--allow-downgrade', 'also where a newer release has run on the device'),
  `
On trial the release has two minutes to connect, load the model and answer prompts as the one before it did. One that
crashes, hangs or answers otherwise fails its stage, which stops the rollout and takes it back.

Examples:
  moefleet agent upgrade 0.2.0 --all --stages 1,5%,25%,100% --soak 60s --gate 'errors==0'
  moefleet agent upgrade 0.2.0 --device board-1
  moefleet agent upgrade 0.1.0 --selector class=jetson --allow-downgrade --why "0.2.0 is slower there"
`, ({ args, options }) => {
    stageAlways(options);
    return { $case: 'setAgent', value: { version: args[0]!, allowDowngrade: options['allowDowngrade'] === true } };
  });
  changing(context, action, agent.command('auto').description('leave devices the release that was installed on them'),
    '\nExample:\n  moefleet agent auto --device board-1\n', ({ options }) => {
      stageAlways(options);
      return { $case: 'clearAgent', value: {} };
    });
}

/** A device is away for a moment on its way to another release: a rollout waits for it, a change at once would call it offline. */
function stageAlways(options: Record<string, unknown>): void {
  if (!options['now']) options['deadline'] ??= DEADLINE_MS;
}

function versionText(text: string): string {
  try {
    return parseVersion(text).text;
  } catch (error) {
    throw new InvalidArgumentError((error as Error).message);
  }
}

async function describeBundle(file: string) {
  if (!existsSync(file)) throw new UsageFailure(`${file}: no such file; build it with: npm run bundle`);
  const { version, arch } = await readBundleManifest(file).catch((error: Error) => {
    throw error instanceof BundleError ? new Failure(`${file} is no bundle of the agent: ${error.message}`) : error;
  });
  const name = `moefleet-agent-${version}-linux-${arch}.tar.zst`;
  if (basename(file) !== name) throw new UsageFailure(`${file} holds ${version} for ${arch}; call it ${name}`);
  const signatureFile = `${file}.minisig`;
  if (!existsSync(signatureFile)) throw new UsageFailure(`${signatureFile}: no such file; devices refuse a bundle that is not signed: build it with --key`);
  const { bytes, sha256 } = await cargoFile(file);
  return { name, bytes: BigInt(bytes), sha256, signature: readFileSync(signatureFile, 'utf8'), addedMs: 0n };
}
