/** What all commands that talk to a coordinator share: their connection, its end, and where their output goes. */
import type { Command } from 'commander';
import { addCommonOptions, type CommonOptions, readCommonOptions } from './config';
import type { Context } from './context';
import { readOperatorChannel } from './operator-channel';
import { OperatorConnection } from './operator-connection';

export interface Run {
  operator: OperatorConnection;
  /** how the coordinator is reached */
  common: CommonOptions;
  json: boolean;
  args: string[];
  /** `args` with those of a last argument that takes many one by one */
  words: string[];
  options: Record<string, unknown>;
  out(text: string): void;
  /** progress and remarks; never data */
  note(text: string): void;
}

export type Action = (work: (run: Run) => Promise<void>) => (...given: unknown[]) => Promise<void>;

/** A group of commands; `fill` adds them, and wraps each one's work in `action`. */
export function addOperatorGroup(program: Command, context: Context, name: string, description: string, fill: (group: Command, action: Action) => void): void {
  fill(addCommonOptions(program.command(name).description(description), { operator: true }), operatorAction(context));
}

/** The group of that name, made where there is none yet. */
export function commandGroup(program: Command, name: string, description = ''): Command {
  return program.commands.find((command) => command.name() === name) ?? program.command(name).description(description);
}

/** commander's action from a command's work: connects, runs, disconnects. */
export function operatorAction(context: Context): Action {
  return (work) => async (...given) => {
    const command = given.at(-1) as Command;
    const common = readCommonOptions(command, context.env);
    const operator = new OperatorConnection(common.operator, context.signal, readOperatorChannel(common.ca, common.token));
    try {
      await work({
        operator, common,
        json: common.json,
        args: command.processedArgs.filter((value) => value !== undefined).map(String),
        words: command.processedArgs.flat().filter((value) => value !== undefined).map(String),
        options: command.opts(),
        out: (text) => void context.stdout.write(text),
        note: (text) => void context.stderr.write(text),
      });
    } finally {
      operator.close();
    }
  };
}
