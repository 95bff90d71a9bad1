/** The agent as a program of its own, the way a bundle starts it (bin/moefleet-agent): `moefleet agent run` without the rest of the command line. */
import { Command, CommanderError } from 'commander';
import { addSettings, BundleError, ConfigError, VERSION } from '@moefleet/runtime';
import { runAgent, SETTINGS } from '../main';

const RUN_HELP = `
A flag wins over its environment variable. Ends on Ctrl-C or SIGTERM.

Example:
  moefleet-agent run --model model.gguf --coordinator coordinator.example:7400 --enrol-token mft1.…
`;

function program(setExitCode: (code: number) => void): Command {
  const agent = new Command('moefleet-agent')
    .description('Runs a Mixture-of-Experts model that is larger than the memory of this device, for a moefleet fleet.')
    .version(VERSION)
    .exitOverride();
  agent.addCommand(addSettings(new Command(), SETTINGS)
    .name('run')
    .description('run the agent in the foreground')
    .copyInheritedSettings(agent)
    .addHelpText('after', RUN_HELP)
    .action(async (flags: Record<string, unknown>) => setExitCode(await runAgent(flags, { ...process.env }))));
  return agent;
}

async function main(): Promise<number> {
  let exitCode = 0;
  try {
    await program((code) => { exitCode = code; }).parseAsync(process.argv);
  } catch (error) {
    // commander has printed its help or its complaint already.
    if (error instanceof CommanderError) return error.exitCode === 0 ? 0 : 2;
    process.stderr.write(`moefleet-agent: ${(error as Error).message}\n`);
    return error instanceof ConfigError || error instanceof BundleError ? 2 : 1;
  }
  return exitCode;
}

void main().then((code) => process.exit(code));
