/** `npm run load`: hollow agents against a fresh coordinator and a fresh Redis, all on this machine's loopback. */
import { parseArgs } from 'node:util';
import { existsSync } from 'node:fs';
import { RECORDING_PATH } from './hollow-fleet/hollow-fleet';
import { reportText } from './load-report';
import { type LoadOptions, LoadRun } from './load-run';
import { descriptorLimit } from './process-usage';
import { Progress } from './progress';

const HELP = `Usage: npm run load -- [options]

Connects hollow agents, each with a TCP connection of its own, to a fresh coordinator process and a fresh Redis on free
loopback ports, lets them report, changes λ on all, and prints what that took. Nothing is left behind.

  --agents N          hollow agents (1000)
  --seconds S         steady traffic before memory is read (60)
  --interval MS       between two telemetry frames of an agent (10000)
  --rate N            new connections per second while they are brought up (400)
  --pushes N          changes of λ, one after the other (3)
  --churn N           agents per second that lose their process and come back (0)
  --stalled N         agents that stop reading (0)
  --vanishing N       agents that vanish without a word, their connections left half open, and come back (0)
  --tls               TLS 1.3, with a key and a certificate of its own for each agent
  --storm             afterwards restart the coordinator and time the return of all
  --kill-coordinator  two coordinators; afterwards kill one with SIGKILL and time the return of all
  --node-flags F      flags for the coordinator's Node, separated by spaces
  --json              figures as JSON on standard output, progress on standard error
  --help

  npm run load -- --agents 200 --seconds 5 --json
  npm run load -- --agents 10000 --storm
`;

/** Descriptors a coordinator needs beside those of its agents. */
const OTHER_DESCRIPTORS = 256;

class UsageError extends Error {}

async function main(): Promise<number> {
  const { values } = readFlags();
  if (values.help) {
    process.stdout.write(HELP);
    return 0;
  }
  const options: LoadOptions = {
    agents: count('agents', values.agents, 1, 100_000), seconds: count('seconds', values.seconds, 1, 3600), tls: values.tls, storm: values.storm,
    killCoordinator: values['kill-coordinator'], perSecond: count('rate', values.rate, 1, 100_000), telemetryIntervalMs: count('interval', values.interval, 50, 3_600_000),
    pushes: count('pushes', values.pushes, 0, 50), churnPerSecond: count('churn', values.churn, 0, 10_000), stalled: count('stalled', values.stalled, 0, 100_000),
    vanishing: count('vanishing', values.vanishing, 0, 100_000), nodeFlags: values['node-flags'].split(' ').filter(Boolean),
  };
  const limit = descriptorLimit();
  if (options.agents + OTHER_DESCRIPTORS > limit) {
    throw new UsageError(`--agents ${options.agents}: the coordinator needs a descriptor per agent and ${OTHER_DESCRIPTORS} more, but a process may have ${limit} here; raise the limit with: ulimit -n ${options.agents + OTHER_DESCRIPTORS} (as root, or in /etc/security/limits.conf)`);
  }
  if (!existsSync(RECORDING_PATH)) throw new UsageError(`${RECORDING_PATH} is missing; make it with test/load/recording/record-agent.mjs`);
  const progress = new Progress();
  const run = new LoadRun(options, progress);
  const interrupted = new Promise<never>((_, reject) => {
    for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, () => reject(new UsageError(`ended by ${signal}`)));
  });
  try {
    const figures = await Promise.race([run.run(), interrupted]);
    progress.endLine();
    process.stdout.write(values.json ? `${JSON.stringify(figures)}\n` : reportText(figures));
    return figures.connected === figures.agents ? 0 : 1;
  } finally {
    progress.endLine();
    await run.stop();
  }
}

function readFlags() {
  const text = (fallback: string) => ({ type: 'string', default: fallback }) as const;
  const yes = { type: 'boolean', default: false } as const;
  try {
    return parseArgs({
      options: {
        agents: text('1000'), seconds: text('60'), interval: text('10000'), rate: text('400'), pushes: text('3'), churn: text('0'), stalled: text('0'),
        vanishing: text('0'), 'node-flags': text(''), tls: yes, storm: yes, 'kill-coordinator': yes, json: yes, help: yes,
      },
    });
  } catch (error) {
    throw new UsageError(`${(error as Error).message}; see npm run load -- --help`);
  }
}

function count(name: string, value: string, least: number, most: number): number {
  const number = Number(value);
  if (!Number.isInteger(number) || number < least || number > most) throw new UsageError(`--${name} ${value}: expected a whole number from ${least} to ${most}`);
  return number;
}

main().then(
  (code) => { process.exitCode = code; },
  (error: Error) => {
    process.stderr.write(`load: ${error instanceof UsageError ? error.message : error.stack}\n`);
    process.exitCode = error instanceof UsageError ? 2 : 1;
  },
);
