/** The names a loaded model answers to. Its id is its file's name without `.gguf`. */
import { basename } from 'node:path';
import { type EngineHost, HostUnavailableError, type LoadedModel } from '../engine-host';
import { ApiError } from './api-error';

export function modelIdOf(model: LoadedModel): string {
  return basename(model.info.path).replace(/\.gguf$/i, '');
}

/** The model that is loaded; throws HostUnavailableError with the reason where none is. */
export function readyModel(host: EngineHost): LoadedModel {
  const { state } = host;
  switch (state.t) {
    case 'ready': return state.model;
    case 'loading': throw new HostUnavailableError('the model is being loaded', true);
    case 'failed': throw new HostUnavailableError(`the engine is not available: ${state.reason}`, state.retryAtMs !== null);
    case 'stopped': throw new HostUnavailableError('no model is loaded', true);
  }
}

/** Throws ApiError (404) where `asked` is another model; null is whatever is loaded. */
export function checkModel(model: LoadedModel, asked: string | null): void {
  const id = modelIdOf(model);
  const names = [id, `${id}.gguf`, model.info.name, model.hash, 'default'];
  if (asked === null || names.includes(asked)) return;
  throw new ApiError(404, 'not_found_error', `The model \`${asked.slice(0, 200)}\` is not loaded; this device runs \`${id}\``, 'model', 'model_not_found');
}
