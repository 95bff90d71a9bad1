/** The files of the folder `deploy` that are sent to devices. */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { REPOSITORY } from '../repository';

export const deployFile = (path: string): string => readFileSync(join(REPOSITORY, 'deploy', path), 'utf8');
