/**
 * `moefleet agent|coordinator|learner run`: the three programs of a fleet, in the foreground. A program's code is
 * loaded only when it is asked for, its flags are made from its own list of settings.
 */
import { Command } from 'commander';
import { addSettings, type Setting } from '@moefleet/runtime';
import type { Context } from '../context';

export interface Program {
  settings: readonly Setting[];
  run(flags: Record<string, unknown>, env: NodeJS.ProcessEnv): Promise<number>;
}

/** Adds `run` to `group`. `example` is the rest of a command line. */
export function addRun(group: Command, context: Context, description: string, example: string, load: () => Promise<Program>): void {
  // The flags are the program's, so this level passes everything through, `--help` included.
  group.command('run')
    .description(`${description} (--help lists its settings)`)
    .argument('[settings...]')
    .allowUnknownOption()
    .passThroughOptions()
    .helpOption(false)
    .action(async (args: string[]) => {
      const { settings, run } = await load();
      const command = addSettings(new Command(), settings)
        .name(`moefleet ${group.name()} run`)
        .description(description)
        .copyInheritedSettings(group)
        .addHelpText('after', `\nA flag wins over its environment variable. Ends on Ctrl-C or SIGTERM.\n\nExample:\n  moefleet ${group.name()} run ${example}\n`)
        .action(async (flags: Record<string, unknown>) => {
          context.releaseSignals();
          context.setExitCode(await run(flags, { ...context.env }));
        });
      await command.parseAsync(args, { from: 'user' });
    });
}
